"""Search images by words or by another image."""

from evle.search.duplicates import find_duplicates
from evle.search.filters import Filter
from evle.search.index import ImageIndex, build_index
from evle.search.models import fingerprint
from evle.search.results import Change, Hit
from evle.search.sheet import write_contact_sheet

__all__ = [
    "Change",
    "Filter",
    "Hit",
    "ImageIndex",
    "build_index",
    "find_duplicates",
    "fingerprint",
    "write_contact_sheet",
]
