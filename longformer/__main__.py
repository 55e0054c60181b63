"""What the installed command runs, and ``python -m longformer`` where it is not installed, as in a checkout."""

import signal


def main() -> None:
    """Run the command. Ctrl-C ends it without a traceback while its modules are imported, too."""
    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # it may be ignored, as under nohup
    if usual:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from longformer.cli import main as run

    if usual:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run()


if __name__ == "__main__":
    main()
