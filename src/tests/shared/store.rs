//! A Redis in memory, as far as the scripts use it, on a clock that the test sets. The scripts are
//! the gateway's own, run by the Lua that Redis has.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use mlua::{Function, Lua, Table, Value, Variadic};
use parking_lot::Mutex;

/// What a command answers.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Reply {
    Nil,
    Ok,
    Number(i64),
    Text(Vec<u8>),
    List(Vec<Reply>),
    Error(String),
}

/// The keys, and what there is beside them.
#[derive(Clone, Default)]
pub(super) struct Data {
    keys: BTreeMap<Vec<u8>, Key>,
    /// Microseconds since 1970, by its own clock.
    pub(super) now: i64,
    /// Its process.
    pub(super) run: u64,
}

#[derive(Clone)]
struct Key {
    kind: Kind,
    /// Milliseconds since 1970.
    ends: Option<i64>,
}

#[derive(Clone)]
enum Kind {
    Sorted(BTreeMap<Vec<u8>, f64>),
    /// In the order in which they were written, as Redis keeps short ones.
    Hash(Vec<(Vec<u8>, Vec<u8>)>),
}

/// A server: its data, and the scripts that it was sent.
pub(super) struct Server {
    pub(super) data: Arc<Mutex<Data>>,
    lua: Lua,
    known: HashMap<String, Function>,
    sent: HashSet<String>,
    /// The first script that failed, and how.
    pub(super) broken: Option<String>,
    /// Scripts that were run.
    pub(super) calls: u64,
    /// Those that wanted slots.
    pub(super) asked: u64,
}

fn text(value: &impl ToString) -> Reply {
    Reply::Text(value.to_string().into_bytes())
}

fn number(word: &[u8]) -> Result<f64, String> {
    match word {
        b"-inf" => Ok(f64::NEG_INFINITY),
        b"+inf" => Ok(f64::INFINITY),
        _ => {
            let text = std::str::from_utf8(word).map_err(|error| error.to_string())?;
            text.parse().map_err(|_| format!("{text} is no number"))
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "whole numbers below 2^53")]
fn whole(word: &[u8]) -> Result<i64, String> {
    let number = number(word)?;
    if number.fract() == 0.0 {
        Ok(number as i64)
    } else {
        Err("ERR value is not an integer or out of range".to_owned())
    }
}

impl std::fmt::Debug for Data {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "at {}", self.now)?;
        for (key, value) in &self.keys {
            write!(f, "{}", String::from_utf8_lossy(key))?;
            match &value.kind {
                Kind::Sorted(members) => {
                    for (member, score) in members {
                        write!(f, " {}={score}", String::from_utf8_lossy(member))?;
                    }
                }
                Kind::Hash(fields) => {
                    for (field, value) in fields {
                        let [field, value] = [field, value].map(|t| String::from_utf8_lossy(t));
                        write!(f, " {field}={value}")?;
                    }
                }
            }
            writeln!(f, " until {:?}", value.ends)?;
        }
        Ok(())
    }
}

impl Data {
    /// Runs one command.
    pub(super) fn call(&mut self, words: &[Vec<u8>]) -> Result<Reply, String> {
        let name = words.first().ok_or("no command")?.to_ascii_uppercase();
        let words = &words[1..];
        let word = |n: usize| words.get(n).map(Vec::as_slice).ok_or("ERR too few words");
        if name == b"TIME" {
            let seconds = self.now.div_euclid(1_000_000);
            let micros = self.now.rem_euclid(1_000_000);
            return Ok(Reply::List(vec![text(&seconds), text(&micros)]));
        }
        if name == b"INFO" {
            return Ok(text(&format!("# Server\r\nrun_id:{:040x}\r\n", self.run)));
        }
        let key = word(0)?;
        self.expire(key);
        match name.as_slice() {
            b"EXISTS" => Ok(Reply::Number(self.keys.contains_key(key).into())),
            b"PEXPIRE" => Ok(self.end(key, self.now / 1_000 + whole(word(1)?)?)),
            b"PEXPIREAT" => Ok(self.end(key, whole(word(1)?)?)),
            name if name.starts_with(b"H") => {
                let reply = self.hash(name, key, &words[1..]);
                self.tidy(key);
                reply
            }
            name if name.starts_with(b"Z") => {
                let reply = self.sorted(name, key, &words[1..]);
                self.tidy(key);
                reply
            }
            other => Err(format!("ERR unknown command {other:?}")),
        }
    }

    fn expire(&mut self, key: &[u8]) {
        let ends = self.keys.get(key).and_then(|key| key.ends);
        if ends.is_some_and(|ends| ends <= self.now / 1_000) {
            self.keys.remove(key);
        }
    }

    fn end(&mut self, key: &[u8], at: i64) -> Reply {
        let found = self.keys.get_mut(key);
        let was = found.map(|found| found.ends = Some(at)).is_some();
        self.expire(key);
        Reply::Number(was.into())
    }

    /// A key in which nothing is left is gone.
    fn tidy(&mut self, key: &[u8]) {
        let empty = self.keys.get(key).is_some_and(|key| match &key.kind {
            Kind::Sorted(members) => members.is_empty(),
            Kind::Hash(fields) => fields.is_empty(),
        });
        if empty {
            self.keys.remove(key);
        }
    }

    fn hash(&mut self, name: &[u8], key: &[u8], words: &[Vec<u8>]) -> Result<Reply, String> {
        let new = || Key {
            kind: Kind::Hash(Vec::new()),
            ends: None,
        };
        let Kind::Hash(fields) = &mut self.keys.entry(key.to_vec()).or_insert_with(new).kind else {
            return Err("WRONGTYPE".to_owned());
        };
        let find = |fields: &[(Vec<u8>, Vec<u8>)], field: &[u8]| {
            fields.iter().position(|(name, _)| name == field)
        };
        match (name, words) {
            (b"HGET", [field]) => Ok(find(fields, field)
                .map_or(Reply::Nil, |place| Reply::Text(fields[place].1.clone()))),
            (b"HGETALL", []) => {
                let all = fields.iter().flat_map(|(name, value)| [name, value]);
                Ok(Reply::List(all.cloned().map(Reply::Text).collect()))
            }
            (b"HKEYS", []) => {
                let names = fields.iter().map(|(name, _)| Reply::Text(name.clone()));
                Ok(Reply::List(names.collect()))
            }
            (b"HSET", pairs) if !pairs.is_empty() && pairs.len().is_multiple_of(2) => {
                let mut added = 0;
                for pair in pairs.chunks(2) {
                    match find(fields, &pair[0]) {
                        Some(place) => fields[place].1.clone_from(&pair[1]),
                        None => {
                            fields.push((pair[0].clone(), pair[1].clone()));
                            added += 1;
                        }
                    }
                }
                Ok(Reply::Number(added))
            }
            (b"HDEL", [field]) => {
                let place = find(fields, field);
                if let Some(place) = place {
                    fields.remove(place);
                }
                Ok(Reply::Number(place.is_some().into()))
            }
            (b"HINCRBY", [field, by]) => {
                let by = whole(by)?;
                let place = find(fields, field);
                let before = place.map_or(Ok(0), |place| whole(&fields[place].1))?;
                let after = (before + by).to_string().into_bytes();
                match place {
                    Some(place) => fields[place].1 = after,
                    None => fields.push((field.clone(), after)),
                }
                Ok(Reply::Number(before + by))
            }
            _ => Err(format!("ERR {name:?} with {} words", words.len())),
        }
    }

    fn sorted(&mut self, name: &[u8], key: &[u8], words: &[Vec<u8>]) -> Result<Reply, String> {
        let new = || Key {
            kind: Kind::Sorted(BTreeMap::new()),
            ends: None,
        };
        let Kind::Sorted(members) = &mut self.keys.entry(key.to_vec()).or_insert_with(new).kind
        else {
            return Err("WRONGTYPE".to_owned());
        };
        let count = |n: usize| Reply::Number(i64::try_from(n).expect("a few"));
        let mut ordered: Vec<(Vec<u8>, f64)> = members
            .iter()
            .map(|(name, at)| (name.clone(), *at))
            .collect();
        // Those with the same score by name, as they are.
        ordered.sort_by(|(_, one), (_, other)| one.total_cmp(other));
        match (name, words) {
            (b"ZADD", [score, member]) => {
                let before = members.insert(member.clone(), number(score)?);
                Ok(Reply::Number(before.is_none().into()))
            }
            (b"ZREM", [member]) => Ok(Reply::Number(members.remove(member).is_some().into())),
            (b"ZCARD", []) => Ok(count(members.len())),
            (b"ZSCORE", [member]) => Ok(members.get(member).map_or(Reply::Nil, text)),
            (b"ZRANGE", [from, to, rest @ ..]) => {
                let length = i64::try_from(members.len()).expect("a few");
                let place = |word: &[u8]| whole(word).map(|n| if n < 0 { n + length } else { n });
                let (from, to) = (place(from)?, place(to)?);
                let inside = (0..).zip(ordered).filter(|(n, _)| (from..=to).contains(n));
                listed(inside.map(|(_, one)| one), rest)
            }
            (b"ZRANGEBYSCORE", [from, to, rest @ ..]) => {
                let (from, to) = (number(from)?, number(to)?);
                let inside = ordered.into_iter();
                listed(inside.filter(|(_, at)| (from..=to).contains(at)), rest)
            }
            (b"ZREMRANGEBYSCORE", [from, to]) => {
                let (from, to) = (number(from)?, number(to)?);
                let inside = ordered
                    .into_iter()
                    .filter(|(_, at)| (from..=to).contains(at));
                let inside: Vec<_> = inside.map(|(member, _)| member).collect();
                for member in &inside {
                    members.remove(member);
                }
                Ok(count(inside.len()))
            }
            _ => Err(format!("ERR {name:?} with {} words", words.len())),
        }
    }
}

/// Members in their order, with their scores if the words after say so.
fn listed(
    members: impl Iterator<Item = (Vec<u8>, f64)>,
    rest: &[Vec<u8>],
) -> Result<Reply, String> {
    let with_scores = match rest {
        [] => false,
        [word] if word.eq_ignore_ascii_case(b"WITHSCORES") => true,
        _ => return Err("ERR syntax error".to_owned()),
    };
    let each = members.flat_map(|(member, score)| {
        let score = with_scores.then(|| text(&score));
        [Some(Reply::Text(member)), score]
    });
    Ok(Reply::List(each.flatten().collect()))
}

impl Server {
    /// An empty server.
    pub(super) fn new() -> Server {
        let data = Arc::new(Mutex::new(Data::default()));
        let lua = Lua::new();
        let known = [
            include_str!("../../quota/take.lua"),
            include_str!("../../quota/redis/join.lua"),
        ];
        let known = known.map(|source| {
            let function = lua.load(source).into_function().expect("it is Lua");
            (redis::Script::new(source).get_hash().to_owned(), function)
        });
        let call = {
            let data = data.clone();
            lua.create_function(move |lua, words: Variadic<Value>| {
                let words: Result<Vec<_>, _> = words.iter().map(word).collect();
                let reply = data.lock().call(&words?).map_err(mlua::Error::runtime)?;
                to_lua(lua, &reply)
            })
        };
        let redis = lua.create_table().expect("there is memory");
        redis
            .set("call", call.expect("there is memory"))
            .expect("it is a table");
        lua.globals().set("redis", redis).expect("it is a table");
        Server {
            data,
            lua,
            known: known.into(),
            sent: HashSet::new(),
            broken: None,
            calls: 0,
            asked: 0,
        }
    }

    /// Another process takes over, with what is left of the data.
    pub(super) fn restart(&mut self, data: Option<Data>) {
        let mut mine = self.data.lock();
        let (now, run) = (mine.now, mine.run + 1);
        *mine = Data {
            now,
            run,
            ..data.unwrap_or_default()
        };
        self.sent.clear();
    }

    /// What a client asks.
    pub(super) fn answer(&mut self, words: &[Vec<u8>]) -> Reply {
        let name = |n: usize| {
            let word = words.get(n).map_or(b"" as &[u8], Vec::as_slice);
            String::from_utf8_lossy(word).to_ascii_uppercase()
        };
        match (name(0).as_str(), name(1).as_str()) {
            ("CLIENT", _) => Reply::Ok,
            ("SCRIPT", "LOAD") => {
                let source = String::from_utf8_lossy(&words[2]);
                let hash = redis::Script::new(&source).get_hash().to_owned();
                self.sent.insert(hash.clone());
                text(&hash)
            }
            ("EVALSHA", _) => {
                let hash = String::from_utf8_lossy(&words[1]).into_owned();
                if !self.sent.contains(&hash) {
                    return Reply::Error("NOSCRIPT No matching script.".to_owned());
                }
                self.calls += 1;
                self.asked += u64::from(wants(words) > 0);
                self.run(&hash, words).unwrap_or_else(|error| {
                    self.broken.get_or_insert_with(|| error.to_string());
                    Reply::Error(format!("ERR {error}"))
                })
            }
            _ => self.data.lock().call(words).unwrap_or_else(Reply::Error),
        }
    }

    fn run(&self, hash: &str, words: &[Vec<u8>]) -> mlua::Result<Reply> {
        let keys = whole(&words[2]).map_err(mlua::Error::runtime)?;
        let keys = usize::try_from(keys).map_err(mlua::Error::external)?;
        let (keys, arguments) = words[3..].split_at(keys);
        let texts = |texts: &[Vec<u8>]| {
            let texts = texts.iter().map(|text| self.lua.create_string(text));
            self.lua
                .create_sequence_from(texts.collect::<Result<Vec<_>, _>>()?)
        };
        self.lua.globals().set("KEYS", texts(keys)?)?;
        self.lua.globals().set("ARGV", texts(arguments)?)?;
        let script = self.known.get(hash);
        let script = script.ok_or_else(|| mlua::Error::runtime("not one of ours"))?;
        from_lua(&script.call(())?)
    }
}

/// The slots that a call of `take.lua` wants are of so many windows.
fn wants(words: &[Vec<u8>]) -> usize {
    let number = |place: usize| std::str::from_utf8(words.get(place)?).ok()?.parse().ok();
    let keys = number(2).unwrap_or(0);
    number(3 + keys + 7).unwrap_or(0)
}

/// A number becomes text as Redis writes it.
fn word(value: &Value) -> mlua::Result<Vec<u8>> {
    match value {
        Value::String(text) => Ok(text.as_bytes().to_vec()),
        Value::Integer(number) => Ok(number.to_string().into_bytes()),
        Value::Number(number) => Ok(number.to_string().into_bytes()),
        other => Err(mlua::Error::runtime(format!(
            "a command with a {}",
            other.type_name()
        ))),
    }
}

#[expect(clippy::cast_precision_loss, reason = "small numbers")]
fn to_lua(lua: &Lua, reply: &Reply) -> mlua::Result<Value> {
    Ok(match reply {
        Reply::Nil => Value::Boolean(false),
        Reply::Number(number) => Value::Number(*number as f64),
        Reply::Text(text) => Value::String(lua.create_string(text)?),
        Reply::List(list) => {
            let list = list.iter().map(|reply| to_lua(lua, reply));
            Value::Table(lua.create_sequence_from(list.collect::<Result<Vec<_>, _>>()?)?)
        }
        Reply::Ok => Value::Table(lua.create_table_from([("ok", "OK")])?),
        Reply::Error(error) => return Err(mlua::Error::runtime(error)),
    })
}

#[expect(clippy::cast_possible_truncation, reason = "as Redis does")]
fn from_lua(value: &Value) -> mlua::Result<Reply> {
    Ok(match value {
        Value::Nil | Value::Boolean(false) => Reply::Nil,
        Value::Boolean(true) => Reply::Number(1),
        Value::Integer(number) => Reply::Number(*number),
        Value::Number(number) => Reply::Number(*number as i64),
        Value::String(text) => Reply::Text(text.as_bytes().to_vec()),
        Value::Table(table) => Reply::List(list(table)?),
        other => return Err(mlua::Error::runtime(other.type_name())),
    })
}

/// Until the first nil, as Redis does.
fn list(table: &Table) -> mlua::Result<Vec<Reply>> {
    let mut list = Vec::new();
    for n in 1.. {
        match table.raw_get(n)? {
            Value::Nil => break,
            value => list.push(from_lua(&value)?),
        }
    }
    Ok(list)
}

/// Takes a whole command off the front of what came in.
pub(super) fn command(bytes: &mut Vec<u8>) -> Option<Vec<Vec<u8>>> {
    let mut place = 0;
    let mut line = |mark: u8| -> Option<usize> {
        let rest = bytes.get(place..)?;
        let end = rest.windows(2).position(|pair| pair == b"\r\n")?;
        assert_eq!(rest[0], mark, "a client sends lists of texts");
        let number = std::str::from_utf8(&rest[1..end]).ok()?.parse().ok()?;
        place += end + 2;
        if mark == b'$' {
            place += number + 2;
        }
        Some(number)
    };
    let count = line(b'*')?;
    let mut ends = Vec::new();
    for _ in 0..count {
        let length = line(b'$')?;
        ends.push(length);
    }
    if place > bytes.len() {
        return None;
    }
    let rest = bytes.split_off(place);
    let whole = std::mem::replace(bytes, rest);
    let mut from = whole.windows(2).position(|pair| pair == b"\r\n")? + 2;
    let words = ends.into_iter().map(|length| {
        from += length.to_string().len() + 3;
        let word = whole[from..from + length].to_vec();
        from += length + 2;
        word
    });
    Some(words.collect())
}

/// An answer as it is written.
pub(super) fn encode(reply: &Reply, out: &mut Vec<u8>) {
    match reply {
        Reply::Nil => out.extend(b"$-1\r\n"),
        Reply::Ok => out.extend(b"+OK\r\n"),
        Reply::Number(number) => out.extend(format!(":{number}\r\n").into_bytes()),
        Reply::Error(error) => out.extend(format!("-{error}\r\n").into_bytes()),
        Reply::Text(text) => {
            out.extend(format!("${}\r\n", text.len()).into_bytes());
            out.extend(text);
            out.extend(b"\r\n");
        }
        Reply::List(list) => {
            out.extend(format!("*{}\r\n", list.len()).into_bytes());
            for reply in list {
                encode(reply, out);
            }
        }
    }
}
