"""What `dcp-ref bench` and benchmarks/ share: decoding at a given share dropped, its parts alone, fair timing."""
