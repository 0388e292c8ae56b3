"""Encode the selected pictures into latents: python -m jobs.encode --data DATA --vae tiny:vae --size 64"""

import sys

import tyro

from jobs._console import told_plainly
from jobs._ray import connect
from pipelines.encode import EncodeConfig, EncodeReport, check, encode
from pipelines.run import RunFailed


def tell(report: EncodeReport, data: str) -> None:
    """Print what was decided."""
    for reason, rows in report.failed.items():
        print(f"failed: {reason} {rows:,}")
    if report.psnr is not None:
        mean, worst = report.psnr
        print(
            f"audit: pictures decode at {mean:.1f} dB (worst {worst:.1f}); "
            f"latents have mean {report.mean:+.3f}, deviation {report.std:.3f}"
        )
    print(
        f"encoded {report.rows:,} rows in {report.shards} shards ({report.bytes / 1e6:,.1f} MB) in "
        f"{report.seconds:.0f} s; manifest {report.hash}; see {data}/latents"
    )


def main() -> None:
    """Entry point."""
    config = tyro.cli(EncodeConfig, description=__doc__)
    with told_plainly():
        check(config)  # mistakes are told before Ray starts
        if config.workers != 0:
            connect()
        try:
            tell(encode(config), config.data)
        except RunFailed as error:
            print(f"error: {error}; run the same command again to try only these", file=sys.stderr)
            raise SystemExit(1) from None


if __name__ == "__main__":
    main()
