"""Noise schedules, training objectives and samplers of stage two."""
