r"""Takes the picture of a run in TensorBoard that the README shows.

    mmnar fit --config simulated --data.init_args.samples 16000 --run_dir runs/simulated
    python docs/assets/tensorboard_picture.py runs/simulated docs/assets/tensorboard.png \
        --tags '^(calibration|pattern_rate)/death$|fusion/gate|shifts'

The picture there is of 40 epochs, with a patience of 60. Needs the extra `dev` and a Chromium; nothing but TensorBoard
on this machine is asked for.
"""

from __future__ import annotations

import argparse
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

TABS = {
    "scalars": "scalars",
    "custom": "custom_scalars",
    "images": "images",
    "curves": "pr_curves",
    "hparams": "hparams",
}
BROWSER = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
BROWSER += ["--disable-component-update", "--disable-sync"]


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def wait_for(address: str, seconds: float) -> None:
    """Wait until a server answers.

    Raises:
        TimeoutError: If it doesn't in that time.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise TimeoutError(f"TensorBoard has not answered within {seconds:.0f} s")


def take(address: str, tab: str, wanted: str, out: Path, chromium: str, seconds: float, size: Sequence[int]) -> None:
    """Open a tab, wait until it has drawn the tags that are wanted, and keep what is seen."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=BROWSER)
        page = browser.new_page(viewport={"width": size[0], "height": size[1]})
        page.set_default_timeout(seconds * 1000)
        page.goto(f"{address}/?darkMode=false#{TABS[tab]}", wait_until="networkidle")
        if tab == "images":
            # smaller than they are, letters lose their strokes
            page.get_by_text("Show actual image size").dispatch_event("click")
        if wanted:
            page.locator("tf-tag-filterer input").first.fill(wanted)
        page.wait_for_load_state("networkidle")
        page.evaluate("window.scrollTo(0, 0)")
        page.wait_for_timeout(5000)
        page.screenshot(path=out)
        browser.close()


def main() -> None:
    """Serve the run, take the picture, stop serving."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tab", choices=TABS, default="images")
    parser.add_argument("--tags", default="", help="regular expression of the tags to show; all, where there is none")
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    parser.add_argument("--seconds", type=float, default=120.0, help="to wait at most for the server, and for the page")
    parser.add_argument("--size", type=int, nargs=2, default=(1400, 1290))
    arguments = parser.parse_args()
    port = free_port()
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(arguments.run_dir), "--port", str(port)]
    with subprocess.Popen([*command, "--host", "127.0.0.1", "--reload_interval", "0"]) as server:
        try:
            address = f"http://127.0.0.1:{port}"
            wait_for(address, arguments.seconds)
            wanted, chromium, seconds = arguments.tags, arguments.chromium, arguments.seconds
            take(address, arguments.tab, wanted, arguments.out, chromium, seconds, arguments.size)
        finally:
            server.terminate()


if __name__ == "__main__":
    main()
