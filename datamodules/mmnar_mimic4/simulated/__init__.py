"""Parts of the simulator of raw eICU extracts."""
