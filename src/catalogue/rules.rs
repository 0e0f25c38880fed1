//! The documented limits of a body as a table, and the one reader of such tables.
//!
//! A rule that is broken answers with the documented code, the place as a JSON pointer (RFC 6901),
//! the measure and the limit. Bytes are UTF-8 bytes after JSON decoding. Fields that no table
//! names are allowed; they only make the call travel alone.

use std::{collections::HashSet, fmt};

use smallvec::SmallVec;

use crate::json::{Node, Object};

/// The code for a parameter of the wrong kind, on every page of the API.
pub const INVALID_PARAMETER: i32 = 10004;

/// A documented member of an object.
#[derive(Debug)]
pub struct Field {
    /// Its name; case matters.
    pub name: &'static str,
    /// Whether it must be there.
    pub presence: Presence,
    /// What it must be.
    pub shape: Shape,
}

/// Whether a field must be there.
#[derive(Debug)]
pub enum Presence {
    /// Always.
    Required,
    /// Checked only if it is there.
    Optional,
    /// Required if the body's integer `field` is one of `values`.
    RequiredIf {
        /// A field at the top of the body.
        field: &'static str,
        /// The values that require this one.
        values: &'static [i128],
        /// What holds for the other values.
        otherwise: Otherwise,
    },
}

/// What holds for a field that is not required.
#[derive(Clone, Copy, Debug)]
pub enum Otherwise {
    /// It is checked if it is there.
    Checked,
    /// It means nothing there: neither checked nor understood.
    Ignored,
}

/// What a field must be.
#[derive(Debug)]
pub enum Shape {
    /// Any string but an empty one.
    Id,
    /// A string of at most so many bytes.
    Text(Max),
    /// A whole number, one of these if any are given.
    Integer(&'static [i128]),
    /// A list of objects.
    List {
        /// The fields of each.
        items: &'static [Field],
        /// How many, and what they are called.
        count: Option<(&'static str, Max)>,
        /// The field that names an item; items with the same name make the list ambiguous.
        distinct: &'static str,
        /// The bytes of one text field over all items.
        total: Option<(&'static str, Max)>,
    },
}

/// A limit and the code that the API documents for breaking it.
#[derive(Clone, Copy, Debug)]
pub struct Max {
    /// The largest measure that is allowed.
    pub limit: usize,
    /// The `ErrorCode` beyond it.
    pub code: i32,
}

/// The first documented limit that a body breaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// The documented `ErrorCode`.
    pub code: i32,
    /// Place, measure and limit: `/GroupAttr/3/key is 33 bytes, the limit is 32`.
    pub message: String,
}

/// What the tables say of a body that breaks none of their limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Understood {
    /// Every field is documented, none is named twice and no list names an item twice.
    pub wholly: bool,
    /// The items of its list; 0 without one.
    pub items: usize,
}

/// Checks a body against its table.
pub fn check(body: &Object<'_>, fields: &[Field]) -> Result<Understood, Broken> {
    let mut check = Check {
        body,
        understood: Understood {
            wholly: true,
            items: 0,
        },
    };
    check.object(&Place::Root, body, fields)?;
    Ok(check.understood)
}

struct Check<'a> {
    body: &'a Object<'a>,
    understood: Understood,
}

impl Check<'_> {
    fn object(
        &mut self,
        at: &Place<'_>,
        object: &Object<'_>,
        fields: &[Field],
    ) -> Result<(), Broken> {
        let mut understood_members = 0;
        for field in fields {
            let place = Place::Member(at, field.name);
            let applies = match field.presence {
                Presence::Required => Applies::Must,
                Presence::Optional => Applies::May,
                Presence::RequiredIf {
                    field,
                    values,
                    otherwise,
                } => match (self.body.get(field), otherwise) {
                    (Some(Node::Integer(value)), _) if values.contains(value) => Applies::Must,
                    (_, Otherwise::Checked) => Applies::May,
                    (_, Otherwise::Ignored) => Applies::No,
                },
            };
            match (object.get(field.name), applies) {
                (Some(node), Applies::Must | Applies::May) => {
                    understood_members += 1;
                    self.node(&place, node, &field.shape)?;
                }
                (None, Applies::Must) => {
                    return Err(broken(INVALID_PARAMETER, &place, "is missing"));
                }
                (Some(_), Applies::No) | (None, _) => {}
            }
        }
        // Unknown members and members named twice are both beyond what the table accounts for.
        self.understood.wholly &= object.0.len() == understood_members;
        Ok(())
    }

    fn node(&mut self, at: &Place<'_>, node: &Node<'_>, shape: &Shape) -> Result<(), Broken> {
        match (shape, node) {
            (Shape::Id, Node::Text(text)) if text.is_empty() => {
                Err(broken(INVALID_PARAMETER, at, "is empty"))
            }
            (Shape::Id, Node::Text(_)) => Ok(()),
            (Shape::Text(max), Node::Text(text)) => at_most(*max, text.len(), |bytes, limit| {
                format!("{at} is {bytes} bytes, the limit is {limit}")
            }),
            (Shape::Integer(allowed), Node::Integer(value)) => {
                if allowed.is_empty() || allowed.contains(value) {
                    return Ok(());
                }
                let allowed: Vec<_> = allowed.iter().map(ToString::to_string).collect();
                let message = format!("is {value}, it must be one of {}", allowed.join(", "));
                Err(broken(INVALID_PARAMETER, at, &message))
            }
            (
                Shape::List {
                    items,
                    count,
                    distinct,
                    total,
                },
                Node::List(list),
            ) => self.list(at, list, items, *count, distinct, *total),
            (_, node) => {
                let wanted = match shape {
                    Shape::Id | Shape::Text(_) => "a string",
                    Shape::Integer(_) => "an integer",
                    Shape::List { .. } => "an array",
                };
                let message = format!("is {}, it must be {wanted}", node.kind());
                Err(broken(INVALID_PARAMETER, at, &message))
            }
        }
    }

    fn list(
        &mut self,
        at: &Place<'_>,
        list: &[Node<'_>],
        fields: &[Field],
        count: Option<(&str, Max)>,
        distinct: &str,
        total: Option<(&str, Max)>,
    ) -> Result<(), Broken> {
        let names = list.iter().filter_map(|item| text(item, distinct));
        let names = distinct_names(names);
        // A key named twice may count once or twice over there: only what is too much under both
        // readings is refused here.
        let ambiguous = names < list.len();
        if let Some((things, max)) = count {
            let measure = if ambiguous { names } else { list.len() };
            at_most(max, measure, |n, limit| {
                format!("{at} has {n} {things}, the limit is {limit}")
            })?;
        }
        for (index, item) in list.iter().enumerate() {
            let place = Place::Item(at, index);
            let Node::Object(object) = item else {
                let message = format!("is {}, it must be an object", item.kind());
                return Err(broken(INVALID_PARAMETER, &place, &message));
            };
            self.object(&place, object, fields)?;
        }
        if let Some((field, max)) = total.filter(|_| !ambiguous) {
            let bytes = list
                .iter()
                .filter_map(|item| text(item, field))
                .map(str::len)
                .sum();
            at_most(max, bytes, |n, limit| {
                format!("{at} has values of {n} bytes together, the limit is {limit}")
            })?;
        }
        self.understood.items = list.len();
        self.understood.wholly &= !ambiguous && !list.is_empty();
        Ok(())
    }
}

/// How many different names there are.
fn distinct_names<'a>(names: impl Iterator<Item = &'a str>) -> usize {
    let names: SmallVec<[&str; FEW]> = names.collect();
    if names.len() > FEW {
        return names.into_iter().collect::<HashSet<_>>().len();
    }
    let is_new = |&at: &usize| !names[..at].contains(&names[at]);
    (0..names.len()).filter(is_new).count()
}

/// As many as a call may have: to compare each with each is cheaper than to hash them.
const FEW: usize = 20;

enum Applies {
    Must,
    May,
    No,
}

fn text<'a>(item: &'a Node<'_>, field: &str) -> Option<&'a str> {
    match item {
        Node::Object(object) => match object.get(field) {
            Some(Node::Text(text)) => Some(text),
            _ => None,
        },
        _ => None,
    }
}

fn at_most(
    max: Max,
    measure: usize,
    message: impl FnOnce(usize, usize) -> String,
) -> Result<(), Broken> {
    if measure <= max.limit {
        return Ok(());
    }
    Err(Broken {
        code: max.code,
        message: message(measure, max.limit),
    })
}

fn broken(code: i32, at: &Place<'_>, what: &str) -> Broken {
    Broken {
        code,
        message: format!("{at} {what}"),
    }
}

/// A place in the body, rendered as a JSON pointer only when something is wrong there.
enum Place<'a> {
    Root,
    Member(&'a Place<'a>, &'a str),
    Item(&'a Place<'a>, usize),
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Root => Ok(()),
            Place::Member(parent, name) => write!(f, "{parent}/{name}"),
            Place::Item(parent, index) => write!(f, "{parent}/{index}"),
        }
    }
}

#[cfg(test)]
pub(super) fn check_text(body: &str, fields: &[Field]) -> Result<Understood, (i32, String)> {
    match Node::parse(body.as_bytes()).expect("the test's body is JSON") {
        Node::Object(object) => {
            check(&object, fields).map_err(|broken| (broken.code, broken.message))
        }
        _ => panic!("the test's body is an object"),
    }
}
