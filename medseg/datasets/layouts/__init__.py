"""The usual ways to arrange the files of a data set in folders."""
