//! The import graph of a crate's files.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use anyhow::Result;

/// A module by its path within the crate, such as `model::route_table`. Empty for the root of the crate.
type Module = String;

/// The imports of each module.
type Graph = BTreeMap<Module, BTreeSet<Module>>;

/// Adds errors to `wrong`: files that import each other in a cycle, and formats that import each other.
pub(super) fn find(base: &Path, formats: &[&str], wrong: &mut Vec<String>) -> Result<()> {
    let mut texts = BTreeMap::new();
    for path in super::files(base)? {
        let module = module(path.strip_prefix(base)?);
        let text = fs::read_to_string(&path)?;
        // Test modules are below the tested module, and may import all of it.
        if !module.split("::").any(|name| matches!(name, "tests" | "corpus")) {
            texts.insert(module, text);
        }
    }
    let graph = graph(&texts);
    for circle in circles(&graph) {
        wrong.push(format!(
            "{}: the files {} import each other in a circle",
            base.display(),
            circle.join(", ")
        ));
    }
    for (module, imports) in &graph {
        let format = |module: &str| formats.iter().find(|format| module.split("::").next() == Some(**format));
        for other in imports {
            if let (Some(own), Some(its)) = (format(module), format(other))
                && own != its
            {
                wrong.push(format!(
                    "{}: `{module}` imports `{other}`, which is another format",
                    base.display()
                ));
            }
        }
    }
    Ok(())
}

/// `model::route_table` for `model/route_table.rs`; empty for `lib.rs`.
fn module(path: &Path) -> Module {
    let path = path.with_extension("");
    let names: Vec<_> = path.iter().map(|name| name.to_string_lossy()).collect();
    if names.len() == 1 && names[0] == "lib" { String::new() } else { names.join("::") }
}

fn graph(texts: &BTreeMap<Module, String>) -> Graph {
    let known = |module: &str| texts.contains_key(module);
    let imports = |(module, text): (&Module, &String)| {
        let found = super::paths(text).into_iter().filter_map(|path| resolve(module, &path, &known));
        (module.clone(), found.filter(|other| other != module).collect())
    };
    texts.iter().map(imports).collect()
}

/// The module of a path within `own`: the longest prefix that is a module. `None` for a path of another crate, or one
/// to the root.
fn resolve(own: &str, path: &str, known: &impl Fn(&str) -> bool) -> Option<Module> {
    let mut names = path.split("::").peekable();
    let mut at: Vec<&str> = match names.next()? {
        "crate" => Vec::new(),
        "self" => own.split("::").filter(|name| !name.is_empty()).collect(),
        "super" => {
            let mut above: Vec<_> = own.split("::").collect();
            above.pop();
            while names.next_if_eq(&"super").is_some() {
                above.pop();
            }
            above
        }
        _ => return None,
    };
    for name in names {
        let below = [at.as_slice(), &[name]].concat().join("::");
        if !known(&below) {
            break;
        }
        at.push(name);
    }
    let module = at.join("::");
    (!module.is_empty()).then_some(module)
}

/// The sets of modules that reach each other (Tarjan's strongly connected components, in a simple way: there are few
/// modules).
fn circles(graph: &Graph) -> Vec<Vec<Module>> {
    let reached: BTreeMap<&Module, BTreeSet<&Module>> =
        graph.keys().map(|module| (module, reach(graph, module))).collect();
    let mut found: Vec<Vec<Module>> = Vec::new();
    for (module, those) in &reached {
        let together: Vec<Module> = those
            .iter()
            .filter(|other| reached.get(**other).is_some_and(|its| its.contains(module)))
            .map(|other| (*other).clone())
            .collect();
        if !together.is_empty() && !found.contains(&together) {
            found.push(together);
        }
    }
    found
}

/// All modules that a module imports, directly or indirectly.
fn reach<'g>(graph: &'g Graph, module: &Module) -> BTreeSet<&'g Module> {
    let mut reached = BTreeSet::new();
    let mut open: Vec<&Module> = graph.get(module).into_iter().flatten().collect();
    while let Some(next) = open.pop() {
        if reached.insert(next) {
            open.extend(graph.get(next).into_iter().flatten());
        }
    }
    reached
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(texts: &[(&str, &str)]) -> Graph {
        graph(&texts.iter().map(|(module, text)| ((*module).into(), (*text).into())).collect())
    }

    #[test]
    fn a_path_leads_to_the_longest_module() {
        let known = |module: &str| ["a", "a::b", "a::c"].contains(&module);
        for (own, path, module) in [
            ("x", "crate::a::b::Item", Some("a::b")),
            ("x", "crate::a::Item", Some("a")),
            ("a::b", "super::c::Item", Some("a::c")),
            ("a::b", "super::Item", Some("a")),
            ("a::b::d", "super::super::c", Some("a::c")),
            ("a", "self::b::Item", Some("a::b")),
            ("a", "std::fmt", None),
            ("a", "crate::Item", None),
        ] {
            assert_eq!(resolve(own, path, &known).as_deref(), module, "{own}: {path}");
        }
    }

    #[test]
    fn a_circle_is_found_over_a_parent_and_over_three() {
        let parent = of(&[("a", "mod b;\nuse self::b::B;"), ("a::b", "use super::A;")]);
        assert_eq!(circles(&parent), [["a", "a::b"]]);
        let three = of(&[
            ("a", "use crate::b::B;"),
            ("b", "crate::c::f();"),
            ("c", "use crate::{a::A, d::D};"),
            ("d", ""),
        ]);
        assert_eq!(circles(&three), [["a", "b", "c"]]);
        assert!(circles(&of(&[("a", "mod b;\nuse self::b::B;"), ("a::b", "")])).is_empty());
    }

    #[test]
    fn a_file_is_a_module() {
        assert_eq!(module(Path::new("lib.rs")), "");
        assert_eq!(module(Path::new("model/route_table.rs")), "model::route_table");
    }
}
