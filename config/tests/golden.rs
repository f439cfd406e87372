//! Each folder of `testdata` is a load. Its `*.yaml` files are read in order. `args` is the command line: one
//! argument with its value per line, then lines `explain NAME [PORT]` (`-` for no name) and `request METHOD
//! SCHEME://NAME/PATH [NAME:VALUE]...`. `out.txt` is the expected output.
//!
//! `BLESS=1 cargo test -p snisplice-config --test golden` writes `out.txt` anew. Read the difference before you
//! commit it.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panic, in its helpers too")]

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use snisplice_config::{Options, Requested, Source, explain, load, render_check};

#[test]
fn testdata() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata");
    let mut failed = Vec::new();
    let cases = sorted(&root);
    assert!(cases.len() > 10, "the cases are there");
    for case in cases {
        let actual = run(&case);
        let expected = case.join("out.txt");
        if std::env::var_os("BLESS").is_some() {
            fs::write(&expected, actual).unwrap();
        } else if fs::read_to_string(&expected).ok().as_ref() != Some(&actual) {
            failed.push(format!("{} should now be:\n{actual}", expected.display()));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

fn run(case: &Path) -> String {
    let sources: Vec<_> = sorted(case)
        .into_iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .map(|path| Source {
            name: path.file_name().unwrap().to_str().unwrap().into(),
            text: fs::read_to_string(&path).unwrap(),
        })
        .collect();
    let args = fs::read_to_string(case.join("args")).unwrap_or_default();
    let mut options = Options::default();
    let mut questions = Vec::new();
    for line in args.lines() {
        let words: Vec<_> = line.split(' ').collect();
        match &*words {
            ["--resolve", value] => options.resolve.push(value.parse().unwrap()),
            ["--listen", value] => options.listen.push(value.parse().unwrap()),
            ["--namespace", value] => options.namespace = Some((*value).into()),
            ["--selector", value] => options.selector.push(value.parse().unwrap()),
            ["explain", name] => questions.push(((*name).to_owned(), None, None)),
            ["explain", name, port] => {
                questions.push(((*name).to_owned(), Some(port.parse().unwrap()), None));
            }
            ["request", method, target, headers @ ..] => {
                let asked = requested(method, target, headers);
                questions.push((asked.authority.clone(), None, Some(asked)));
            }
            _ => panic!("{}: {line}", case.display()),
        }
    }
    let translation = load(&sources.into_iter().collect(), &options);
    let mut out = render_check(&translation);
    for (name, port, request) in questions {
        let model = translation.model.as_ref().expect("a model to explain");
        let explanation = explain(model, (name != "-").then_some(&*name), port, request.as_ref());
        let path = request.map(|asked| format!(" --path {}", asked.path)).unwrap_or_default();
        write!(out, "\n$ explain {name}{path}\n{explanation}").unwrap();
    }
    out
}

fn requested(method: &str, target: &str, headers: &[&str]) -> Requested {
    let (scheme, rest) = target.split_once("://").unwrap();
    let (authority, path) = rest.split_at(rest.find('/').unwrap());
    let (path, query) =
        path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query.to_owned())));
    let headers = headers.iter().map(|header| header.split_once(':').unwrap());
    Requested {
        method: method.into(),
        scheme: scheme.into(),
        path: path.into(),
        query,
        headers: headers.map(|(name, value)| (name.into(), value.into())).collect(),
        authority: authority.into(),
    }
}

fn sorted(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}
