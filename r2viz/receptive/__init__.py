"""Receptive fields: what a unit could see (theory), how a network is traced for that, and what it does see."""
