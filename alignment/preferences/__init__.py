"""Votes → consensus, agreement, pairs; raters that are programs."""
