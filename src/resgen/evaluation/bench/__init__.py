"""`resgen bench`: seconds, network passes and memory of every kind of generator, beside bare matrix products.

`cases` says what is sampled, `products` records and repeats the matrix products of a run, `timing` and `memory` measure
one piece of work, `speed` puts the table together. The scripts in the repository's `benchmarks/` build on the same
pieces.
"""
