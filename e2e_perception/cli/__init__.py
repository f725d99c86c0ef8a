"""The `e2e-perception` command; each subcommand imports what it needs when it runs."""
