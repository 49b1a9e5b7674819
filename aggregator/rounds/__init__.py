"""The round: who is asked, when it closes, and what becomes of it; all as pure functions of events and time."""
