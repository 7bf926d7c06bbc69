"""Run the commands by ``python -m openviper.cli viperctl ...``."""

from openviper.cli import openviper

if __name__ == "__main__":
    openviper(prog_name="openviper")
