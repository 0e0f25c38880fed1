//! The nearest right name for a misspelt one.

use std::collections::BTreeMap;

use strsim::damerau_levenshtein;

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    Section,
    Setting,
}

/// All names that there are, as paths.
pub(super) type Known = BTreeMap<String, Shape>;

/// Names longer than this are not misspelt; comparing them would take long for nothing.
const LENGTH_MAX: usize = 80;

/// The candidate that `word` most likely is a misspelling of.
pub(super) fn nearest<'k>(
    word: &str,
    candidates: impl Iterator<Item = &'k str>,
) -> Option<&'k str> {
    if word.len() > LENGTH_MAX {
        return None;
    }
    candidates
        .map(|candidate| (damerau_levenshtein(word, candidate), candidate))
        .filter(|(distance, candidate)| {
            *distance <= (candidate.chars().count().max(word.chars().count()) / 3).max(1)
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// The nearest name in the same section.
pub(super) fn sibling<'k>(path: &str, shape: Shape, known: &'k Known) -> Option<&'k str> {
    let (section, word) = split(path);
    let siblings = paths(shape, known).filter(|candidate| split(candidate).0 == section);
    let found = nearest(word, siblings.clone().map(|candidate| split(candidate).1))?;
    siblings
        .into_iter()
        .find(|candidate| split(candidate).1 == found)
}

/// The nearest name anywhere: in the same section, by that very name in another one, with the
/// section written otherwise (`queue_deadline`), or one letter off in another section.
pub(super) fn anywhere<'k>(path: &str, shape: Shape, known: &'k Known) -> Option<&'k str> {
    let (_, word) = split(path);
    if word.len() > LENGTH_MAX {
        return None;
    }
    sibling(path, shape, known)
        .or_else(|| paths(shape, known).find(|candidate| split(candidate).1 == word))
        .or_else(|| {
            let joined = path.replace(['-', '.'], "_");
            paths(shape, known).find(|candidate| candidate.replace('.', "_") == joined)
        })
        .or_else(|| {
            paths(shape, known).find(|candidate| damerau_levenshtein(split(candidate).1, word) == 1)
        })
}

/// The names in a section, for when none of them is near.
pub(super) fn names_in<'k>(section: &str, known: &'k Known) -> Vec<&'k str> {
    known
        .keys()
        .map(|path| split(path))
        .filter(|(s, _)| *s == section)
        .map(|(_, n)| n)
        .collect()
}

/// The section that a path is in, empty at the top, and the name in it.
pub(super) fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('.').unwrap_or(("", path))
}

fn paths(shape: Shape, known: &Known) -> impl Iterator<Item = &str> + Clone {
    known
        .iter()
        .filter(move |(_, known)| **known == shape)
        .map(|(path, _)| path.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn far_names_are_not_suggested() {
        assert_eq!(
            nearest("dedline", ["deadline", "order"].into_iter()),
            Some("deadline")
        );
        assert_eq!(nearest("colour", ["deadline", "order"].into_iter()), None);
        assert_eq!(
            nearest(&"a".repeat(100_000), ["deadline"].into_iter()),
            None
        );
    }
}
