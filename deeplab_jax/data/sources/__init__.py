"""The built-in data sets, one file each: where a data set comes from and how its files are read."""
