"""Who gets in, and how bytes come and go: sockets, authentication, enrolment, and the bounds on all three."""
