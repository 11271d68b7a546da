"""Speed benchmarks, each pairing two implementations in one run. Installed as `lewm.benchmarks`;
run with `lewm bench NAME`."""
