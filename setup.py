"""wal-e: continuous archiving of PostgreSQL to S3, GCS, Azure, Swift or files."""

import re
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
version = re.search(r'__version__ = "(.+)"', (here / "wal_e/__init__.py").read_text())[1]

stores = {
    "aws": ["boto3>=1.36", "urllib3>=2.1"],
    "azure": ["azure-storage-blob>=12.20", "urllib3>=2.1"],
    "azure-identity": ["azure-storage-blob>=12.20", "urllib3>=2.1", "azure-identity>=1.15"],
    "google": ["google-cloud-storage>=2.15,<4", "urllib3>=2.2"],
    "swift": ["python-swiftclient>=4.4", "keystoneauth1>=5.1", "urllib3>=2.1"],
}

verify = ["numpy>=1.24"]  # for page checksums

setup(
    name="wal-e",
    version=version,
    description="Continuous archiving for PostgreSQL: base backups and WAL, and back to any point in time",
    long_description=(here / "README.rst").read_text(),
    long_description_content_type="text/x-rst",
    license="BSD-3-Clause",
    license_files=["LICENSE"],
    packages=find_packages(include=["wal_e", "wal_e.*"]),
    # A plain script: it starts as fast as the interpreter, a generated entry point does not.
    scripts=["bin/wal-e"],
    python_requires=">=3.11",
    install_requires=[
        "click>=8.1",
        "gevent>=24.2",
        "psycopg[binary]>=3.1.18",
        "google-crc32c>=1.5",
        "inotify_simple>=1.3",
    ],
    extras_require={
        **stores,
        "verify": verify,
        "all": sorted({*verify, *(requirement for requirements in stores.values() for requirement in requirements)}),
        "test": ["pytest>=8", "pytest-xdist>=3.7", "hypothesis>=6.100", *verify],
        "docs": ["sphinx>=7.2"],
    },
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Environment :: Console",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Database",
        "Topic :: System :: Archiving :: Backup",
    ],
)
