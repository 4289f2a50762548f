# The image of every service in compose.yaml: the same code, started with different commands.
FROM python:3.11-slim

WORKDIR /warren
COPY requirements.lock ./
RUN pip install --no-cache-dir --require-hashes -r requirements.lock

COPY . ./
# The secret key is asked for by the settings and not used here.
RUN useradd --create-home warren \
    && mkdir -p var \
    && SECRET_KEY=unused DEBUG=0 python manage.py collectstatic --noinput \
    && chown -R warren var
USER warren
EXPOSE 8000
