"""convt against PyTorch: interleaved, in medians, checked in the same run. docs/tuning.md has the protocol."""
