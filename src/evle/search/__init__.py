"""Search images by words or by another image."""

from evle.search.index import Change, Hit, ImageIndex, build_index, fingerprint, write_contact_sheet

__all__ = ["Change", "Hit", "ImageIndex", "build_index", "fingerprint", "write_contact_sheet"]
