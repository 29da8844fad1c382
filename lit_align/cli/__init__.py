"""The command line: subcommands, configuration parsing and error messages."""
