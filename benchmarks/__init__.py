"""What the package costs in time and memory, measured side by side: `make bench`.

Every part runs in fresh processes, one after the other, so that nothing else of the benchmark
takes time or memory meanwhile. The results are rows of one table, `results.csv`.
"""
