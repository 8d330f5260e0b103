"""An in-memory graph: see `params` for what can be chosen, `build` for the layout, `search` for how it is walked."""
