//! `cargo xtask layers`: compares the daemon's rooms with the floors in ARCHITECTURE.md, and checks that the files of
//! the configuration have no import cycles.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::shell::root;

mod circles;

/// Check that no room of the daemon imports one on its own floor or above, and that no files of `config` import each
/// other in a cycle
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

/// The file with the picture of the floors.
const TABLE: &str = "ARCHITECTURE.md";
/// The begin and the end of the picture.
const FENCES: [&str; 2] = ["```layers\n", "```"];
/// The folder of the rooms.
const ROOMS: &str = "userspace/src";
/// The folder whose files may not import each other in a cycle.
const CONFIG: &str = "config/src";
/// The formats, which may not import each other.
const FORMATS: [&str; 2] = ["native", "istio"];
/// Files that belong to no room, since they name all rooms.
const ROOFS: [&str; 2] = ["lib", "main"];

pub(crate) fn run(_: &Args) -> Result<()> {
    let text = fs::read_to_string(root().join(TABLE)).with_context(|| format!("cannot read {TABLE}"))?;
    let floors = floors(&text)?;
    let base = root().join(ROOMS);
    let mut rooms = BTreeSet::new();
    let mut wrong = Vec::new();
    for path in files(&base)? {
        let room = room(path.strip_prefix(&base)?);
        if ROOFS.contains(&room.as_str()) {
            continue;
        }
        let Some(floor) = floors.get(&room) else {
            bail!("{TABLE} shows no room `{room}`, in which {} is: add it to a floor", path.display());
        };
        let imports = imports(&fs::read_to_string(&path)?);
        for other in imports.iter().filter(|other| **other != room) {
            // Any other name is an item of lib.rs.
            if let Some(its) = floors.get(other)
                && its >= floor
            {
                let file = path.strip_prefix(root())?.display();
                wrong.push(format!("{file}: `{room}` imports `{other}`, which is not below it"));
            }
        }
        rooms.insert(room);
    }
    for gone in floors.keys().filter(|room| !rooms.contains(*room)) {
        wrong.push(format!("{TABLE} shows the room `{gone}`, which is not there"));
    }
    circles::find(&root().join(CONFIG), &FORMATS, &mut wrong)?;
    ensure!(wrong.is_empty(), "{}\nmove what is shared to a lower floor, or hand it in", wrong.join("\n"));
    println!("{} rooms on their floors; no circle among the files of {CONFIG}", rooms.len());
    Ok(())
}

/// The floor of each room, from the lowest one on.
fn floors(text: &str) -> Result<BTreeMap<String, usize>> {
    let [begin, end] = FENCES;
    let picture = text.split_once(begin).and_then(|(_, rest)| rest.split_once(end));
    let (picture, _) = picture.with_context(|| format!("{TABLE} has no block that begins with {begin:?}"))?;
    let mut floors = BTreeMap::new();
    for (floor, line) in picture.lines().rev().enumerate() {
        for room in line.split_whitespace() {
            ensure!(floors.insert(room.to_owned(), floor).is_none(), "{TABLE} shows `{room}` twice");
        }
    }
    Ok(floors)
}

/// All Rust files below a folder.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(self::files(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(files)
}

/// The room of a file: `net` for `net.rs` and all files below `net/`.
fn room(path: &Path) -> String {
    let first = path.iter().next().unwrap_or_default().to_string_lossy();
    first.strip_suffix(".rs").unwrap_or(&first).to_owned()
}

/// The rooms that a file names by paths beginning with `crate::`, except in its tests.
fn imports(text: &str) -> BTreeSet<String> {
    paths(text).iter().filter_map(|path| Some(name(path.strip_prefix("crate::")?))).collect()
}

/// All paths of a file that begin with `crate`, `self` or `super`, except in its tests. A list in braces is expanded.
fn paths(text: &str) -> Vec<String> {
    let text = text.split_once("#[cfg(test)]\nmod tests {").map_or(text, |(code, _)| code);
    let code: Vec<&str> = text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect();
    let code = code.join("\n");
    let mut found = Vec::new();
    for root in ["crate::", "self::", "super::"] {
        for (at, _) in code.match_indices(root) {
            // Neither the end of another word, nor within a path that is found by its beginning.
            if !code[..at].ends_with(|before: char| is_of_name(before) || before == ':') {
                let mut path = root.strip_suffix("::").unwrap_or(root).to_owned();
                expand(&mut path, &code[at + root.len()..], &mut found);
            }
        }
    }
    found
}

/// Adds the paths that continue `path` with `rest`, without the `::` between.
fn expand(path: &mut String, rest: &str, found: &mut Vec<String>) {
    let length = path.len();
    if let Some(list) = rest.strip_prefix('{') {
        let (mut depth, mut begins) = (0_usize, true);
        for (at, character) in list.char_indices() {
            match character {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => begins = true,
                _ if begins && depth == 0 && !character.is_whitespace() => {
                    expand(path, &list[at..], found);
                    begins = false;
                }
                _ => {}
            }
        }
    } else {
        let name = name(rest);
        path.push_str("::");
        path.push_str(&name);
        match rest[name.len()..].strip_prefix("::") {
            Some(rest) if !name.is_empty() => expand(path, rest, found),
            _ => found.push(path.clone()),
        }
    }
    path.truncate(length);
}

fn is_of_name(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

fn name(path: &str) -> String {
    path.chars().take_while(|character| is_of_name(*character)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floors_are_read_from_the_bottom() {
        let floors = floors("text\n```layers\nroof\n  one two\nground\n```\n").unwrap();
        assert_eq!((floors["roof"], floors["two"], floors["ground"]), (2, 1, 0));
        assert!(self::floors("```layers\na\na\n```").is_err());
        assert!(self::floors("none").is_err());
    }

    #[test]
    fn names_in_braces_and_in_code_are_imports() {
        let text = "use crate::{\n    a::{b, c::D},\n    e,\n};\nuse crate::f::G; // crate::h\nlet x = crate::i::j();\n\
                    #[cfg(test)]\nmod tests {\n    use crate::k;\n}\n";
        assert_eq!(imports(text), ["a", "e", "f", "i"].map(str::to_owned).into());
    }

    #[test]
    fn a_file_is_in_the_room_of_its_folder() {
        assert_eq!(room(Path::new("net.rs")), "net");
        assert_eq!(room(Path::new("net/repair.rs")), "net");
    }
}
