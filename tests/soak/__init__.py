"""`make soak`: kills, full disks, two jobs at once, killed ranks, signals, long runs and a fuzzer, on tiny data."""
