"""Where a run can be submitted, one file each.

A target is a module with

    add_options(parser)             its options, an `argparse` parser's
    render(options, run) -> str     what is submitted, as text
    submit(options, run) -> int     submits it; an exit status

whose docstring is the text of `--help`.
"""
