//! Which credentials are found for which image, and in which order.

use std::os::unix::fs::PermissionsExt as _;

use serde_json::json;

use super::*;

fn basic(username: &str, password: &str) -> Auth {
    Auth::Basic { username: username.into(), password: password.into() }
}

fn lookup(config: &Value, image: &str) -> Result<Vec<Auth>> {
    let mut keychain = Keychain::anonymous();
    keychain.add(DockerConfig::parse("the secret", config.to_string().as_bytes())?);
    let image = Reference::parse(image).expect(image);
    keychain.lookup(image.registry_key(), image.repository(), true)
}

#[test]
fn docker_config_table() {
    let auth = STANDARD.encode("me:se:cret");
    let padded = STANDARD.encode("me:se:cret\0\0");
    let me = || vec![basic("me", "se:cret")];
    let cases = [
        ("hub", json!({"auths": {"https://index.docker.io/v1/": {"auth": auth}}}), "nginx", me()),
        ("old form", json!({"quay.io": {"username": "me", "password": "se:cret"}}), "quay.io/a/b", me()),
        ("port", json!({"auths": {"localhost:5000": {"auth": auth}}}), "localhost:5000/x", me()),
        ("padding", json!({"auths": {"quay.io": {"auth": padded}}}), "quay.io/x", me()),
        ("other", json!({"auths": {"quay.io": {"auth": auth}}}), "nginx", vec![]),
        ("wildcard", json!({"auths": {"*.example.com": {"auth": auth}}}), "r.example.com/x", me()),
        ("wildcard is one label", json!({"auths": {"*.com": {"auth": auth}}}), "r.example.com/x", vec![]),
        (
            "all that match, most specific first",
            json!({"auths": {"quay.io": {"username": "a", "password": "b"}, "quay.io/team": {"auth": auth}}}),
            "quay.io/team/app",
            vec![basic("me", "se:cret"), basic("a", "b")],
        ),
        (
            "path is whole components",
            json!({"auths": {"quay.io/te": {"auth": auth}}}),
            "quay.io/team/x",
            vec![],
        ),
        (
            "a path that begins like a version",
            json!({"auths": {"quay.io/v2team": {"auth": auth}}}),
            "quay.io/v2team/x",
            me(),
        ),
        (
            "registry token",
            json!({"auths": {"quay.io": {"registrytoken": "t"}}}),
            "quay.io/x",
            vec![Auth::Bearer("t".into())],
        ),
        (
            "identity token",
            json!({"auths": {"quay.io": {"auth": auth, "identitytoken": "t"}}}),
            "quay.io/x",
            vec![Auth::Identity("t".into())],
        ),
        ("empty entry", json!({"auths": {"quay.io": {}}, "credsStore": "no-such"}), "quay.io/x", vec![]),
        ("other settings", json!({"psFormat": "table", "auths": {}}), "nginx", vec![]),
        ("only other settings", json!({"psFormat": "table"}), "nginx", vec![]),
        ("helpers of a secret are not run", json!({"credHelpers": {"quay.io": "x"}}), "quay.io/x", vec![]),
    ];
    for (name, config, image, expect) in cases {
        assert_eq!(lookup(&config, image).expect(name), expect, "{name}");
    }
}

#[test]
fn bad_configurations_say_where() {
    let long = STANDARD.encode("nocolon");
    for (config, expect) in [
        (json!([]), "invalid type"),
        (json!({"auths": {"quay.io": {"auth": "%%%"}}}), "auth: Invalid symbol"),
        (json!({"auths": {"quay.io": {"auth": long}}}), "it has no colon"),
        (json!({"auths": {"quay.io": {"auth": 7}}}), "invalid type"),
    ] {
        let error = lookup(&config, "quay.io/x").expect_err("it is bad").to_string();
        assert!(error.starts_with("credentials in the secret") && error.contains(expect), "{error}");
    }
}

#[test]
fn given_ones_are_for_the_registry_itself() {
    let keychain = Keychain::of(basic("me", "x"));
    assert_eq!(keychain.lookup("quay.io", "x", true).expect("no helper"), [basic("me", "x")]);
    assert_eq!(keychain.lookup("mirror.example", "x", false).expect("no helper"), []);
}

#[test]
fn where_users_keep_them() {
    let variable = |name: &str| (name != "DOCKER_CONFIG").then(|| OsString::from(format!("/{name}")));
    let files = user_files(variable);
    let expect =
        ["/REGISTRY_AUTH_FILE", "/HOME/.docker/config.json", "/XDG_RUNTIME_DIR/containers/auth.json"];
    assert_eq!(files, expect.map(PathBuf::from));
    let files = user_files(|name: &str| (name == "DOCKER_CONFIG").then(|| OsString::from("/d")));
    assert_eq!(files, [PathBuf::from("/d/config.json")]);
}

#[test]
fn helpers_table() {
    let dir = tempfile::tempdir().expect("a folder");
    let helper = |name: &str, script: &str| {
        let path = dir.path().join(format!("docker-credential-{name}"));
        fs::write(&path, format!("#!/bin/sh\nread -r server || :\n{script}\n")).expect("write");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("chmod");
        path
    };
    helper("user", r#"printf '{"ServerURL":"%s","Username":"me","Secret":"%s"}' "$server" "$server""#);
    helper("token", r#"printf '{"ServerURL":"x","Username":"<token>","Secret":"t"}'"#);
    helper("empty", "echo 'credentials not found in native keychain'; exit 1");
    helper("broken", "echo 'the vault is locked'; exit 1");
    helper("odd", "echo hello");
    // Looked up in the folder: PATH is this process's, and other tests run in it.
    let ask = |name: &str, host: &str| {
        let config = DockerConfig { name: "config.json".to_owned(), ..DockerConfig::default() };
        let program = dir.path().join(format!("docker-credential-{name}"));
        let output = run(program.to_str().expect("UTF-8"), if host == HUB { HUB_KEY } else { host });
        config.answer(name, &output.expect("it runs"))
    };
    assert_eq!(ask("user", "quay.io").expect("found"), Some(basic("me", "quay.io")));
    assert_eq!(ask("user", HUB).expect("found"), Some(basic("me", HUB_KEY)));
    assert_eq!(ask("token", "quay.io").expect("found"), Some(Auth::Identity("t".into())));
    assert_eq!(ask("empty", "quay.io").expect("nothing is no error"), None);
    for (name, expect) in [("broken", "the vault is locked"), ("odd", "not what helpers answer")] {
        let error = ask(name, "quay.io").expect_err(name).to_string();
        assert!(error.contains(expect), "{error}");
    }
}

#[test]
fn a_missing_helper_is_named() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("config.json");
    for config in [json!({"credHelpers": {"quay.io": "no-such"}}), json!({"credsStore": "no-such"})] {
        fs::write(&path, config.to_string()).expect("write");
        let mut keychain = Keychain::anonymous();
        keychain.add_file(&path).expect("read");
        let error = keychain.lookup("quay.io", "x", true).expect_err("there is none").to_string();
        assert!(error.contains("docker-credential-no-such"), "{error}");
    }
    let mut keychain = Keychain::anonymous();
    keychain.add_file(&dir.path().join("missing")).expect("a missing file is no error");
}
