"""Files of weights, of this package and from elsewhere: from a name to a network that has them.

In order: `location` finds the file, `checkpoint_file` reads it without running its code
(`stored_array` its arrays of NumPy),
`weight_sets` finds the weights in it (`stored_weights` is both), `recognition` tells by
`name_maps` whose names its tensors have, `identification` which network of this package it is for,
`loading` puts them into a network, and `misfit` says why they do not fit.
"""
