"""File formats that readers share: tables, JSON, tars."""
