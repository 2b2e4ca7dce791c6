"""The ops on CPUs, over ATen's flash attention."""
