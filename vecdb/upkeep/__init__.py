"""Work that goes on beside the user's: `indexing` builds what searches are to find ready."""
