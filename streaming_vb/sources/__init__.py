"""Sources: where intervals of records come from. One file each; a source knows only records and intervals."""
