"""Widgets of a notebook."""
from . import widgets   # with it all methods of `FeatureExplorer`, which several modules define
