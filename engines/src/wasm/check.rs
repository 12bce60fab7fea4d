//! What a module must be to run here, found out before any time goes into compiling it.

use std::collections::BTreeMap;

use wasmparser::{Encoding, ExternalKind, FuncType, Parser, Payload, TypeRef};
use wasmtime::{Engine, Extern, Linker, Store};

use super::guest::GuestState;

/// The module that every import comes from: WASI preview 1.
pub(crate) const WASI: &str = "wasi_snapshot_preview1";

/// Names listed in an error, so that a large module makes no long one.
const NAMES_SHOWN: usize = 8;

/// What the rest of the engine wants to know of a module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Facts {
    /// The memory that it has from the start, in bytes.
    pub memory_minimum: u64,
}

/// The functions that a module may import, by name, with their types as text.
pub(crate) struct Functions(BTreeMap<String, String>);

impl Functions {
    /// Those of a linker.
    pub fn of(engine: &Engine, linker: &Linker<GuestState>, state: GuestState) -> Self {
        let mut store = Store::new(engine, state);
        let externs: Vec<(String, Extern)> = linker
            .iter(&mut store)
            .filter(|(module, _, _)| *module == WASI)
            .map(|(_, name, item)| (name.to_owned(), item))
            .collect();
        let types = externs.into_iter().filter_map(|(name, item)| {
            let ty = item.into_func()?.ty(&store);
            let parameters = ty.params().map(|one| one.to_string()).collect();
            let results = ty.results().map(|one| one.to_string()).collect();
            Some((name, signature(parameters, results)))
        });
        Functions(types.collect())
    }
}

/// Checks that `wasm` is a core module that imports only WASI preview 1 and exports `entrypoint` as a
/// function without parameters and results. The error is for the job's author.
pub(crate) fn module(wasm: &[u8], entrypoint: &str, functions: &Functions) -> Result<Facts, String> {
    if !wasm.starts_with(b"\0asm") {
        return Err("it is not a WebAssembly module: it does not begin with \\0asm".into());
    }
    let outline = Outline::read(wasm).map_err(|error| error.unwrap_or_else(component))?;
    for (module, name, ty) in &outline.imports {
        import(&outline, module, name, *ty, functions)?;
    }
    outline.check_entrypoint(entrypoint)?;
    Ok(Facts { memory_minimum: outline.memory_minimum })
}

fn component() -> String {
    "it is a WebAssembly component; only core modules with WASI preview 1 can run".into()
}

fn import(
    outline: &Outline<'_>,
    module: &str,
    name: &str,
    ty: TypeRef,
    functions: &Functions,
) -> Result<(), String> {
    let shown = format!("{}::{}", module.escape_debug(), name.escape_debug());
    if module != WASI {
        return Err(format!("it imports {shown}, which does not exist here: only {WASI} does"));
    }
    let TypeRef::Func(index) = ty else {
        return Err(format!("it imports {shown} as something other than a function"));
    };
    let Some(offered) = functions.0.get(name) else {
        return Err(format!("it imports {shown}, which is no function of WASI preview 1"));
    };
    let wanted = outline.types.get(index as usize).map(of_type).unwrap_or_default();
    if wanted == *offered {
        Ok(())
    } else {
        Err(format!("it imports {shown} as {wanted}, but that function is {offered}"))
    }
}

/// The parts of a module that are looked at.
#[derive(Default)]
struct Outline<'a> {
    types: Vec<FuncType>,
    imports: Vec<(&'a str, &'a str, TypeRef)>,
    /// The type of each function, imported ones first.
    functions: Vec<u32>,
    exports: Vec<(&'a str, ExternalKind, u32)>,
    memory_minimum: u64,
}

impl<'a> Outline<'a> {
    /// Reads up to the code. An error without text is a component.
    fn read(wasm: &'a [u8]) -> Result<Self, Option<String>> {
        let mut outline = Outline::default();
        for payload in Parser::new(0).parse_all(wasm) {
            match payload.map_err(broken)? {
                Payload::Version { encoding: Encoding::Component, .. } => return Err(None),
                Payload::CodeSectionStart { .. } | Payload::End(_) => break,
                payload => outline.add(payload).map_err(broken)?,
            }
        }
        Ok(outline)
    }

    fn add(&mut self, payload: Payload<'a>) -> wasmparser::Result<()> {
        match payload {
            Payload::TypeSection(types) => {
                for ty in types.into_iter_err_on_gc_types() {
                    self.types.push(ty?);
                }
            }
            Payload::ImportSection(imports) => {
                for import in imports.into_imports() {
                    let import = import?;
                    if let TypeRef::Func(ty) = import.ty {
                        self.functions.push(ty);
                    }
                    self.imports.push((import.module, import.name, import.ty));
                }
            }
            Payload::FunctionSection(functions) => {
                for ty in functions {
                    self.functions.push(ty?);
                }
            }
            Payload::MemorySection(memories) => {
                for memory in memories {
                    let bytes = memory?.initial.saturating_mul(64 << 10);
                    self.memory_minimum = self.memory_minimum.saturating_add(bytes);
                }
            }
            Payload::ExportSection(exports) => {
                for export in exports {
                    let export = export?;
                    self.exports.push((export.name, export.kind, export.index));
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn check_entrypoint(&self, entrypoint: &str) -> Result<(), String> {
        let shown = entrypoint.escape_debug();
        let Some((_, kind, index)) = self.exports.iter().find(|(name, _, _)| *name == entrypoint) else {
            return Err(format!("it exports no function {shown}{}", self.entrypoints()));
        };
        let ty = self.functions.get(*index as usize).and_then(|&ty| self.types.get(ty as usize));
        match ty.filter(|_| *kind == ExternalKind::Func) {
            None => Err(format!("its export {shown} is not a function")),
            Some(ty) if ty.params().is_empty() && ty.results().is_empty() => Ok(()),
            Some(ty) => Err(format!(
                "its function {shown} is {}; an entrypoint takes and returns nothing",
                of_type(ty)
            )),
        }
    }

    /// What else could be called, as the end of a sentence.
    fn entrypoints(&self) -> String {
        let callable = self.exports.iter().filter(|(name, _, _)| self.check_entrypoint_type(name));
        let names: Vec<_> = callable.map(|(name, _, _)| name.escape_debug().to_string()).collect();
        match names.len() {
            0 => String::new(),
            count if count > NAMES_SHOWN => format!("; it has {}, …", names[..NAMES_SHOWN].join(", ")),
            _ => format!("; it has {}", names.join(", ")),
        }
    }

    fn check_entrypoint_type(&self, name: &str) -> bool {
        name.len() <= 64 && self.check_entrypoint(name).is_ok()
    }
}

fn broken(error: wasmparser::BinaryReaderError) -> Option<String> {
    Some(format!("it is not a valid WebAssembly module: {error}"))
}

fn of_type(ty: &FuncType) -> String {
    signature(
        ty.params().iter().map(|one| one.to_string()).collect(),
        ty.results().iter().map(|one| one.to_string()).collect(),
    )
}

fn signature(parameters: Vec<String>, results: Vec<String>) -> String {
    format!("({}) -> ({})", parameters.join(", "), results.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wasm::{config, guest};

    fn check(wat: &str, entrypoint: &str) -> Result<Facts, String> {
        check_bytes(&wat::parse_str(wat).unwrap(), entrypoint)
    }

    fn check_bytes(wasm: &[u8], entrypoint: &str) -> Result<Facts, String> {
        module(wasm, entrypoint, &guest::functions(&config::compiler().unwrap()).unwrap())
    }

    #[test]
    fn commands_pass_and_tell_their_memory() {
        let wat = r#"(module
            (import "wasi_snapshot_preview1" "proc_exit" (func (param i32)))
            (memory (export "memory") 3)
            (func (export "_start")))"#;
        assert_eq!(check(wat, "_start"), Ok(Facts { memory_minimum: 3 << 16 }));
    }

    #[test]
    fn foreign_imports_are_named() {
        for (wat, named) in [
            (r#"(module (import "env" "abort" (func)))"#, "env::abort"),
            (r#"(module (import "wasi_snapshot_preview1" "fly" (func)))"#, "wasi_snapshot_preview1::fly"),
            (r#"(module (import "wasi_snapshot_preview1" "proc_exit" (func)))"#, "(i32) -> ()"),
            (r#"(module (import "wasi_snapshot_preview1" "proc_exit" (memory 1)))"#, "proc_exit"),
        ] {
            let error = check(wat, "_start").unwrap_err();
            assert!(error.contains(named), "{error}");
        }
    }

    #[test]
    fn entrypoints_must_exist_and_take_nothing() {
        let wat =
            r#"(module (memory (export "m") 1) (func (export "main")) (func (export "add") (param i32)))"#;
        assert_eq!(check(wat, "_start").unwrap_err(), "it exports no function _start; it has main");
        assert_eq!(check(wat, "m").unwrap_err(), "its export m is not a function");
        assert!(check(wat, "add").unwrap_err().contains("(i32) -> ()"));
        assert!(check(wat, "main").is_ok());
    }

    #[test]
    fn what_is_no_core_module_is_told_apart() {
        assert!(check_bytes(b"#!/bin/sh", "_start").unwrap_err().contains("not a WebAssembly module"));
        assert!(check("(component)", "_start").unwrap_err().contains("component"));
        let mut cut = wat::parse_str(r#"(module (func (export "_start")))"#).unwrap();
        cut.truncate(cut.len() - 12);
        assert!(check_bytes(&cut, "_start").unwrap_err().contains("not a valid"));
    }
}
