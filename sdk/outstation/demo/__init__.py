"""The main job, end to end, with real processes: what ``outstation demo`` runs."""
