"""One file for each inference library, behind one small protocol."""
