# The server; `--target devnet` is the same with Anvil. Nothing secret is needed to build it, and nothing is in it.
FROM python:3.11.14-slim-bookworm AS package
WORKDIR /source
COPY requirements.txt pyproject.toml README.md LICENSE ./
COPY x402_gig x402_gig
RUN python -m venv --without-pip /opt/x402-gig \
    && pip --python /opt/x402-gig install --no-cache-dir --disable-pip-version-check --require-hashes -r requirements.txt \
    && pip --python /opt/x402-gig install --no-deps --no-build-isolation .

FROM node:20.19.5-bookworm-slim AS anvil
WORKDIR /source
COPY package.json package-lock.json ./
RUN npm ci --omit=dev --ignore-scripts --no-audit --no-fund

FROM python:3.11.14-slim-bookworm AS runtime
RUN useradd --uid 10001 --create-home gigs && install -d -o gigs -g gigs /data
COPY --from=package /opt/x402-gig /opt/x402-gig
ENV PATH=/opt/x402-gig/bin:$PATH X402_GIG_HOST=0.0.0.0
USER 10001:10001
# The SQLite ledger of a single server lies here, and belongs on a volume.
WORKDIR /data

FROM runtime AS devnet
COPY --from=anvil /source/node_modules/@foundry-rs/anvil-linux-*/bin/anvil /usr/local/bin/anvil
EXPOSE 8545
HEALTHCHECK --interval=2s --timeout=2s --start-period=60s CMD ["python", "-c", "import socket; socket.create_connection(('127.0.0.1', 8545), 1)"]
CMD ["x402-gig", "devnet", "--anvil-host", "0.0.0.0", "--block-time", "2"]

FROM runtime AS server
EXPOSE 4021
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:4021/healthz', timeout=4)"]
CMD ["x402-gig", "serve"]
