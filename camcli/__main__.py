"""`camcli` and `python -m camcli`."""

from camcli.pipeline.interrupt import end_at_once


def main() -> None:
    """Entry point: while the command line is imported, a signal ends the process without a traceback."""
    end_at_once()
    from camcli.cli.app import main as run

    run()


if __name__ == "__main__":
    main()
