"""Content: typed state and topology. Reference graphs, and `govern()` for anyone's compiled graph."""
