"""Films through a backbone of timm: nothing is computed for a sample without films."""

from __future__ import annotations

import logging
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmnar_lightning.encoders.backbone import (
    Architecture,
    Trained,
    batch_norms,
    build,
    choose_trained,
    data_config,
    fill,
    find,
    origin,
    set_training,
)
from mmnar_lightning.encoders.decoding import FilmReader, UnreadableError
from mmnar_lightning.encoders.features import FeatureEncoder, FeatureReader, FeatureTable
from mmnar_lightning.encoders.pooling import AttentionPool
from mmnar_lightning.encoders.pretrained import NotDownloadedError, PretrainedError, in_words
from mmnar_lightning.records import Elements, Inputs, Modality

log = logging.getLogger(__name__)
# films in one call where no gradient is kept
AT_ONCE = 64
# of `augment`: degrees, share of the side, share of the scale, share of the range of values
TURN, SHIFT, ZOOM, LIGHT = 5.0, 0.05, 0.05, 0.1


class ImageEncoder(FeatureEncoder):
    """Each film through a timm backbone, pooled by attention into the sample.

    v_j = backbone((x_j/255 − μ)/σ), μ and σ those of the backbone's weights; u_j = Drop(GELU(LN(W₁ [LN(v_j);
    log(1 + h_j/24); k_j]))), h_j the hours before the prediction time (0 where unknown) and k_j whether they are known;
    e = LN(W₂ Attend_j(u_j)).

    Files are opened by `reader()`, in the loader's processes; one that can't be read is an error, or with
    ``unreadable: count`` no film: a sample none of whose films can be read is then not observed, just as if that had
    been found when the store was prepared. There is no token for "unreadable": it would be trained on the few samples
    that broke, and would say nothing of the patient.

    The checkpoint holds weights, architecture and preparation of films, so that it needs neither hub nor file. The
    pretrained weights are looked for when the encoder is built, and if they are not on this machine the error waits
    until they are needed.

    Args:
        modality: Of kind ``image``.
        width: D.
        model: Name in timm (``resnet18``, ``vit_small_patch14_dinov2.lvd142m``), or folder or hub repository in timm's
            format (``config.json`` and ``model.safetensors``).
        pretrained: Begin from the weights that timm names, or that lie in the folder or repository.
        weights: A safetensors file to begin from in place of those.
        revision: Branch, tag or commit on the hub.
        download: Fetch weights from the hub if they are not in the local cache; HF_HUB_OFFLINE wins.
        channels: 3, or 1 for grey: the first layer's weights are then added up over colours, a third of the input.
        image_size: Side in pixels; None takes that of the weights. Transformers with fixed positions resample them.
        crop_pct: Share of a film's side that the backbone sees, cut from the centre; None takes that of the weights,
            mostly 0.875 to 0.95. 1 loses no edge.
        crop_mode: ``center`` cuts the longer side to a square, ``squash`` makes it one, out of proportion,
            ``border`` puts borders beside the shorter; whole films only with `crop_pct` 1. None takes that of the
            weights.
        train: ``frozen`` (evaluation mode, no gradient), ``last_n`` layers, or ``full``.
        last_layers: n of ``last_n``, blocks as timm groups them.
        layer_decay: λ: a layer learns at λ^(layers after it) of the learning rate, see `parameter_groups`; None is 1.
        drop_path: Rate of stochastic depth; None takes the model's.
        gradient_checkpointing: Compute activations anew in the backward pass: less memory, more time.
        train_batch_norm: Whether batch norms use and learn the statistics of a batch, rather than keep those of the
            weights; they then depend on batch mates, and differ between devices. None: only where no weights are
            loaded. What is frozen never does.
        augment: In training turn (± 5°), shift (± 5 %), scale (± 5 %) and relight (± 10 %) each film. Never mirrored:
            the side of the heart is a finding.
        dropout: Probability in Drop.
        max_films: Films of a sample that are opened, those nearest to the prediction time; None opens all.
        unreadable: ``error``, or ``count``: leave out films that can't be read and count them, as
            ``<stage>/unreadable_<modality>``.
        max_pixels: Most pixels decoded of a film, after a JPEG's reduction; larger ones can't be read.

    Attributes:
        provenance: Where the weights come from, see `pretrained.provenance`.

    Raises:
        PretrainedError: If the model can't be used; says why. If it isn't on this machine, when it is first needed.
        ValueError: If an option is out of range.

    Source: Wightman, *PyTorch Image Models*, 2019; attention as in Ilse, Tomczak, Welling, *Attention-based Deep
    Multiple Instance Learning*, 2018; layer-wise decay: Bao et al., *BEiT*, 2021, as in timm.
    """

    kinds: ClassVar[tuple[str, ...]] = ("image",)
    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        modality: Modality,
        width: int,
        *,
        model: str = "resnet18",
        pretrained: bool = True,
        weights: str | None = None,
        revision: str | None = None,
        download: bool = False,
        channels: Literal[1, 3] = 3,
        image_size: int | None = None,
        crop_pct: float | None = None,
        crop_mode: Literal["center", "squash", "border"] | None = None,
        train: Trained = "frozen",
        last_layers: int = 2,
        layer_decay: float | None = None,
        drop_path: float | None = None,
        gradient_checkpointing: bool = False,
        train_batch_norm: bool | None = None,
        augment: bool = False,
        dropout: float = 0.1,
        max_films: int | None = None,
        unreadable: Literal["error", "count"] = "error",
        max_pixels: int = 50_000_000,
    ) -> None:
        super().__init__(modality, width)
        self.name, self.channels, self.trained, self.last_layers = modality.name, channels, train, last_layers
        self.layer_decay, self.drop_path, self.augment, self.dropout = layer_decay, drop_path, augment, dropout
        self.gradient_checkpointing, self.max_films, self.unreadable = gradient_checkpointing, max_films, unreadable
        self.max_pixels = max_pixels
        self.wanted: dict[str, Any] = {"image_size": image_size, "crop_pct": crop_pct, "crop_mode": crop_mode}
        loads = pretrained or weights is not None
        self.train_batch_norm = not loads if train_batch_norm is None else train_batch_norm
        self._check_options()
        self.backbone: nn.Module | None = None
        self.provenance: dict[str, Any] = {}
        self._described: dict[str, Any] = {}
        self._reader: FilmReader | None = None
        self._missing: NotDownloadedError | None = None
        try:
            architecture, found, self._missing = find(
                model, revision=revision, download=download, pretrained=pretrained, weights=weights
            )
        except NotDownloadedError as error:
            # no error yet: a checkpoint may be about to bring weights and architecture
            self._missing = error
            return
        self._take(architecture)
        if found is not None:
            assert self.backbone is not None
            fill(self.backbone, architecture, found, channels)
        self.provenance = origin(model, found)
        if found is not None:
            log.info("modality %r: %s", self.name, in_words(self.provenance))

    def _check_options(self) -> None:
        for option, chosen, known in (
            ("train", self.trained, ("frozen", "last_n", "full")),
            ("channels", self.channels, (1, 3)),
            ("crop_mode", self.wanted["crop_mode"], ("center", "squash", "border", None)),
            ("unreadable", self.unreadable, ("error", "count")),
        ):
            if chosen not in known:
                listed = ", ".join(str(k) for k in known if k is not None)
                raise ValueError(f"modality {self.name!r}: {option} {chosen!r} is not one of {listed}")
        positive = {"last_layers": self.last_layers, "max_films": self.max_films, "max_pixels": self.max_pixels}
        for option, value in {**positive, "image_size": self.wanted["image_size"]}.items():
            if value is not None and value < 1:
                raise ValueError(f"modality {self.name!r}: {option} must be at least 1, is {value}")
        for option, share in (("layer_decay", self.layer_decay), ("crop_pct", self.wanted["crop_pct"])):
            if share is not None and not 0 < share <= 1:
                raise ValueError(f"modality {self.name!r}: {option} must be above 0 and at most 1, is {share}")

    def _take(self, architecture: Architecture) -> None:
        """Build the backbone of an architecture as the options say."""
        data = data_config(architecture, self.channels, self.wanted)
        arguments = {**architecture.arguments, "in_chans": self.channels}
        if self.drop_path is not None:
            arguments["drop_path_rate"] = self.drop_path
        if self.wanted["image_size"] is not None and architecture.source.get("fixed_input_size"):
            arguments["img_size"] = self.wanted["image_size"]
        self._build({"model": architecture.name, "arguments": arguments, "data": data})

    def _build(self, described: dict[str, Any]) -> None:
        backbone = build(Architecture(described["model"], dict(described["arguments"]), {}))
        try:
            choose_trained(backbone, self.trained, self.last_layers)
        except ValueError as error:
            raise PretrainedError(f"modality {self.name!r}: {error}") from error
        if self.gradient_checkpointing and self.trained != "frozen":
            backbone.set_grad_checkpointing(True)  # type: ignore[operator]
        hidden, width = int(backbone.head_hidden_size), self.width  # type: ignore[arg-type]
        data = described["data"]
        self.backbone, self._described = backbone, described
        mean, std = (torch.tensor(data[name], dtype=torch.float32)[:, None, None] for name in ("mean", "std"))
        # on bytes: (x/255 − μ)/σ = x·scale + shift
        self.register_buffer("scale", 1 / (255 * std), persistent=False)
        self.register_buffer("shift", -mean / std, persistent=False)
        self._reader = FilmReader(
            self.name,
            tuple(data["input_size"]),
            data["crop_pct"],
            data["crop_mode"],
            data["interpolation"],
            tuple(data["mean"]),
            self.max_films,
            self.unreadable,
            self.max_pixels,
        )
        self.norm = nn.LayerNorm(hidden)
        self.film = nn.Sequential(
            nn.Linear(hidden + 2, width), nn.LayerNorm(width), nn.GELU(), nn.Dropout(self.dropout)
        )
        self.films = AttentionPool(width)
        self.head = nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width))
        self.train(self.training)

    def train(self, mode: bool = True) -> ImageEncoder:
        """Switch to training mode; what is frozen stays in evaluation mode, and so do batch norms but by option."""
        super().train(mode)
        if self.backbone is not None and mode:
            set_training(self.backbone, self.train_batch_norm)
        return self

    def _ready(self) -> nn.Module:
        if self._missing is not None:
            raise self._missing
        assert self.backbone is not None
        return self.backbone

    def frozen(self) -> dict[str, Any] | None:
        """Return what a film's vector depends on, None where the backbone is trained or films are augmented."""
        if self.trained != "frozen" or self.augment:
            return None
        weights = self.weights(self._ready())
        return {"architecture": self._described, "weights": weights, "max_pixels": self.max_pixels}

    def embed(self, elements: Elements) -> tuple[Tensor, Tensor]:
        """Return the vectors of films, see `FeatureEncoder.embed`."""
        films = (elements if isinstance(elements.values, Tensor) else self.opener()(elements)).values
        assert isinstance(films, Tensor)
        element = torch.arange(len(films), device=films.device)
        if not len(films):
            return torch.zeros(0, self.norm.normalized_shape[0], device=films.device), element
        with torch.no_grad():
            return self._vectors(films), element

    def feature_reader(self, table: FeatureTable) -> FeatureReader:
        """Return how vectors are read in the place of films."""
        return FeatureReader(table, self.name, self.max_films, self.unreadable, self._reader)

    def opener(self) -> FilmReader:
        """Return what opens the films.

        Raises:
            NotDownloadedError: If it isn't known how films are prepared, since the model is not on this machine.
        """
        if self._reader is None:
            self._ready()
        assert self._reader is not None
        return self._reader

    def forward(self, elements: Elements, rows: Tensor) -> tuple[Tensor, Inputs | None]:
        """Encode, see `Encoder.forward`; films that no loader has opened are opened here.

        Raises:
            UnreadableError: If a film can't be read, or none of a row's can.
            ValueError: If the values are neither strings nor films of the right size nor features.
        """
        self._ready()
        if not isinstance(elements.values, Tensor):
            elements = self.opener()(elements)
            lost = len(rows) - len(torch.unique(elements.row))
            if lost:
                raise UnreadableError(
                    f"modality {self.name!r}: {lost} of {len(rows)} rows have no film that can be read; `records.read` "
                    "takes them for not observed"
                )
        values = elements.values
        assert isinstance(values, Tensor)
        size = self.opener().size
        if elements.part_of is None and (values.dtype != torch.uint8 or values.shape[1:] != size):
            raise ValueError(f"modality {self.name!r}: needs films as uint8 of {' × '.join(map(str, size))}")
        if not len(rows):
            return self._joined_only(), None
        place = torch.searchsorted(rows, elements.row)
        vectors = self._vectors(values) if elements.part_of is None else values
        return self._pooled(vectors, elements.hours_before, place, len(rows)), None

    def _joined_only(self) -> Tensor:
        """No token [0, D], but a black film's way through every trained part, so that no device waits for it."""
        device = self.scale.device
        if torch.is_grad_enabled() and self.trained != "frozen":
            vectors = self._features(torch.zeros(1, *self.opener().size, dtype=torch.uint8, device=device), real=False)
        else:
            vectors = torch.zeros(1, self.norm.normalized_shape[0], device=device)
        first = torch.zeros(1, dtype=torch.int64, device=device)
        return self._pooled(vectors, torch.zeros(1, device=device), first, 1)[:0]

    def _vectors(self, films: Tensor) -> Tensor:
        """Run films uint8 [E, C, H, W] through the backbone: float32 [E, H]."""
        if torch.is_grad_enabled() and self.trained != "frozen":
            return self._features(films)
        with torch.no_grad():
            return torch.cat([self._features(part) for part in torch.split(films, AT_ONCE)])

    def _features(self, films: Tensor, real: bool = True) -> Tensor:
        backbone = self._ready()
        norms = batch_norms(backbone) if self.training and self.train_batch_norm and self.trained != "frozen" else []
        if any(isinstance(n, nn.SyncBatchNorm) for n in norms):
            # a device without films has no statistics to share
            raise ValueError(f"modality {self.name!r}: train_batch_norm cannot be used with sync_batchnorm")
        x = films.float() * self.scale.float() + self.shift.float()
        if self.augment and self.training and real:
            x = self._augmented(x)
        x = x.to(next(backbone.parameters()).dtype)
        learning = [norm for norm in norms if norm.training]
        # one film has no statistics, and a stand-in must leave none behind
        for norm in learning if len(films) < 2 else ():
            norm.training = False
        vectors: Tensor = backbone(x)
        for norm in learning:
            norm.training = True
        return vectors.float()

    def _augmented(self, x: Tensor) -> Tensor:
        drawn = torch.rand(6, len(x), device=x.device) * 2 - 1
        angle, zoom = torch.deg2rad(TURN * drawn[0]), 1 + ZOOM * drawn[1]
        cos, sin = zoom * angle.cos(), zoom * angle.sin()
        # of the square the film is stretched to; all but exact for near-square ones
        theta = torch.stack([cos, -sin, 2 * SHIFT * drawn[2], sin, cos, 2 * SHIFT * drawn[3]], 1).reshape(-1, 2, 3)
        with torch.autocast(x.device.type, enabled=False):
            grid = functional.affine_grid(theta, list(x.shape), align_corners=False)
            moved = functional.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)
        # standardised values: contrast around their mean, and brightness by a share of the range
        contrast, brightness = 1 + LIGHT * drawn[4], LIGHT * drawn[5]
        return moved * contrast[:, None, None, None] + brightness[:, None, None, None]

    def _pooled(self, vectors: Tensor, hours: Tensor, place: Tensor, rows: int) -> Tensor:
        timed = ~hours.isnan()
        since = torch.log1p(torch.where(timed, hours, 0.0).clamp(min=0) / 24)
        v = self.norm(vectors.to(self.norm.weight.dtype))
        u = self.film(torch.cat([v, since[:, None].to(v.dtype), timed[:, None].to(v.dtype)], 1))
        return self.head(self.films(u, place, rows))  # type: ignore[no-any-return]

    def parameter_groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """Return groups of all trained parameters for an optimiser, as timm makes them for the backbone.

        Args:
            lr: Learning rate of the last layer and of what comes after it.
            weight_decay: Of matrices; biases, norms and what the architecture excepts (positions) are not decayed.

        Returns:
            Each group with `params`, `lr` and `weight_decay`.
        """
        from timm.optim import param_groups_layer_decay  # type: ignore[attr-defined]

        backbone = self._ready()
        excepted = backbone.no_weight_decay() if hasattr(backbone, "no_weight_decay") else set()  # type: ignore[operator]
        decay = 1.0 if self.layer_decay is None else self.layer_decay
        groups: list[dict[str, Any]] = [
            {"params": g["params"], "lr": lr * g["lr_scale"], "weight_decay": g["weight_decay"]}
            for g in param_groups_layer_decay(backbone, weight_decay, tuple(excepted), layer_decay=decay)
        ]
        own = [p for n, p in self.named_parameters() if p.requires_grad and not n.startswith("backbone.")]
        for decayed in (True, False):
            params = [p for p in own if (p.ndim > 1) is decayed]
            groups.append({"params": params, "lr": lr, "weight_decay": weight_decay if decayed else 0.0})
        return groups

    def get_extra_state(self) -> dict[str, Any]:
        """Return architecture, preparation of films and provenance as plain types."""
        self._ready()
        return {**self._described, "provenance": self.provenance}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take architecture, preparation of films and provenance from a checkpoint.

        torch calls it before it loads the weights of the parts, so they can be built here where the pretrained model is
        not on this machine, or has become another.
        """
        described = {name: state[name] for name in ("model", "arguments", "data")}
        if self.backbone is None or described != self._described:
            device = next((p.device for p in self.parameters()), None)
            # the weights drawn here are replaced: later random numbers must not depend on them
            with torch.random.fork_rng(devices=[]):
                self._build(described)
            self.to(device)
        self.provenance, self._missing = dict(state["provenance"]), None
