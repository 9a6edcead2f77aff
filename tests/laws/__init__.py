"""What every mixer promises, as functions over anything that runs along time. Read them in this order.

1 Cut       running.cut, running.decode         a sequence may be cut anywhere, down to single tokens
2 Packing   running.packing, running.poison     documents in one row do not know of each other, even when one is NaN
3 Rows      running.rows_apart, running.decode  rows of a batch do not know of each other, nor how many they are
4 Placing   placing.placed, placing.refuses     a mesh changes no number; a wrong name or size raises
5 Types     placing.types, .traces_once, .every_weight_learns
6 Numbers   numerics.differences, .low_precision, .stays_finite
7 Cost      numerics.cost                       what is declared is what is counted

`suite.Laws` makes tests of them; `subject` holds the random example and the compiled program that they share.
Equal means: within tolerance.py's table. A law raises AssertionError where a promise is broken.
"""
