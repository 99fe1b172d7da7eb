"""Parts of the simulator of raw MIMIC-IV extracts."""
