"""What of the environment travels."""

from infd.environment import without_secrets


def test_law_no_credential_travels():
    told = {"AWS_ENDPOINT_URL": "a", "AWS_REGION": "b", "MLFLOW_TRACKING_URI": "c"}
    kept = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_SESSION_TOKEN": "t",
            "MLFLOW_TRACKING_PASSWORD": "p", "HOME": "h"}
    assert without_secrets({**kept, **told}, prefixes=("AWS_", "MLFLOW_")) == told
    assert without_secrets(told, prefixes=()) == {}
