//! Message extensions: what the four commands accept and what they do.
//!
//! The limits are those of the vendor's pages for `group_set_key_values` and its siblings. What
//! the pages leave open is decided so: more than 300 pairs on a message is 10004 for the whole
//! request; deleting a pair that is not there is 23004 for that pair, as the SDK's header words
//! that code; `Seq` is the version of a pair, begins above `ClearSeq` and grows by one a write. A
//! getter's page ends after 200 pairs even in the middle of equal `Seq`s, which a caller cannot
//! page past; that follows from counting `Seq` by pair.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Value, json};

use super::{
    answer::{Fields, Refusal},
    body::Body,
    command::Command,
};

const REQUEST_PAIRS_MAX: usize = 20;
const MESSAGE_PAIRS_MAX: usize = 300;
const KEY_BYTES_MAX: usize = 100;
const VALUE_BYTES_MAX: usize = 1_000;
const PAGE_PAIRS: usize = 200;

/// The message that extensions belong to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Message {
    InGroup {
        group: String,
        msg_seq: u64,
    },
    OneToOne {
        from: String,
        to: String,
        msg_key: String,
    },
}

/// A call on the extensions of a message, checked as far as that is possible without the message.
#[derive(Debug)]
pub(super) struct ExtensionCall {
    pub(super) message: Message,
    action: Action,
}

#[derive(Debug)]
enum Action {
    Set(Vec<Pair>),
    Delete(Vec<Pair>),
    Clear,
    Get { start_seq: u64 },
}

/// A pair as it was sent.
#[derive(Debug)]
struct Pair {
    key: String,
    value: String,
    seq: Option<u64>,
}

impl Message {
    /// Reads which message a body is about.
    pub(super) fn read(command: Command, body: &Body) -> Result<Self, Refusal> {
        match command {
            Command::SetGroupExtensions | Command::GetGroupExtensions => Ok(Self::InGroup {
                group: body.text("GroupId")?.to_owned(),
                msg_seq: body.number("MsgSeq")?,
            }),
            _ => Ok(Self::OneToOne {
                from: body.optional_text("From_Account")?.unwrap_or("").to_owned(),
                to: body.text("To_Account")?.to_owned(),
                msg_key: body.text("MsgKey")?.to_owned(),
            }),
        }
    }
}

impl ExtensionCall {
    /// Reads the body of one of the four extension commands.
    pub(super) fn read(command: Command, message: Message, body: &Body) -> Result<Self, Refusal> {
        let action = match command {
            Command::SetGroupExtensions | Command::SetExtensions => {
                match body.number("OperateType")? {
                    1 => Action::Set(pairs(body, |item| item.any_text("Value"))?),
                    2 => Action::Delete(pairs(body, |item| {
                        Ok(item.optional_text("Value")?.unwrap_or(""))
                    })?),
                    3 => Action::Clear,
                    _ => return Err(Refusal::parameter("OperateType is not 1, 2 or 3")),
                }
            }
            _ => Action::Get {
                start_seq: body.optional_number("StartSeq")?.unwrap_or(0),
            },
        };
        Ok(Self { message, action })
    }

    /// How many pairs the call carries.
    pub(super) fn pairs(&self) -> usize {
        match &self.action {
            Action::Set(pairs) | Action::Delete(pairs) => pairs.len(),
            Action::Clear | Action::Get { .. } => 0,
        }
    }
}

fn pairs(
    body: &Body,
    value: impl Fn(&Body) -> Result<&str, Refusal>,
) -> Result<Vec<Pair>, Refusal> {
    let items = body.list("ExtensionList")?;
    if items.len() > REQUEST_PAIRS_MAX {
        return Err(Refusal::parameter("ExtensionList has more than 20 pairs"));
    }
    let pair = |item: &Body| {
        let (key, value) = (item.text("Key")?, value(item)?);
        if key.len() > KEY_BYTES_MAX {
            return Err(Refusal::parameter("a Key exceeds 100 bytes"));
        }
        if value.len() > VALUE_BYTES_MAX {
            return Err(Refusal::parameter("a Value exceeds 1000 bytes"));
        }
        Ok(Pair {
            key: key.to_owned(),
            value: value.to_owned(),
            seq: item.optional_number("Seq")?,
        })
    };
    items.iter().map(pair).collect()
}

/// The extensions of all messages, by app and message.
#[derive(Default)]
pub(super) struct Extensions {
    messages: HashMap<(String, Message), Stored>,
}

#[derive(Default)]
struct Stored {
    pairs: BTreeMap<String, Version>,
    clear_seq: u64,
}

struct Version {
    value: String,
    seq: u64,
}

impl Extensions {
    /// Executes a call; `check_seq` compares each `Seq` that is given with what is stored.
    pub(super) fn execute(
        &mut self,
        sdkappid: &str,
        call: &ExtensionCall,
        check_seq: bool,
    ) -> Result<Fields, Refusal> {
        let stored = self
            .messages
            .entry((sdkappid.to_owned(), call.message.clone()))
            .or_default();
        match &call.action {
            Action::Set(pairs) => {
                let mut keys: Vec<&str> = pairs.iter().map(|pair| pair.key.as_str()).collect();
                keys.retain(|key| !stored.pairs.contains_key(*key));
                keys.sort_unstable();
                keys.dedup();
                if stored.pairs.len() + keys.len() > MESSAGE_PAIRS_MAX {
                    let info = "the message would have more than 300 pairs";
                    return Err(Refusal::parameter(info));
                }
                Ok(listed(pairs, |pair| stored.set(pair, check_seq)))
            }
            Action::Delete(pairs) => Ok(listed(pairs, |pair| stored.delete(pair, check_seq))),
            Action::Clear => {
                stored.clear_seq = stored.latest_seq();
                stored.pairs.clear();
                Ok(Fields::new())
            }
            Action::Get { start_seq } => Ok(stored.page(*start_seq)),
        }
    }

    pub(super) fn snapshot(&self, sdkappid: &str, message: Message) -> BTreeMap<String, String> {
        let Some(stored) = self.messages.get(&(sdkappid.to_owned(), message)) else {
            return BTreeMap::new();
        };
        let pair = |(key, version): (&String, &Version)| (key.clone(), version.value.clone());
        stored.pairs.iter().map(pair).collect()
    }
}

impl Stored {
    fn set(&mut self, pair: &Pair, check_seq: bool) -> Value {
        if check_seq && let Some(conflict) = self.conflict(pair) {
            return conflict;
        }
        let seq = match self.pairs.get(&pair.key) {
            Some(version) => version.seq,
            None => self.clear_seq,
        } + 1;
        let value = pair.value.clone();
        self.pairs.insert(pair.key.clone(), Version { value, seq });
        result(0, &pair.key, &pair.value, seq)
    }

    fn delete(&mut self, pair: &Pair, check_seq: bool) -> Value {
        if check_seq && let Some(conflict) = self.conflict(pair) {
            return conflict;
        }
        match self.pairs.remove(&pair.key) {
            Some(version) => result(0, &pair.key, "", version.seq),
            None => result(23004, &pair.key, "", 0),
        }
    }

    /// The answer to a pair whose `Seq` is not the stored one: what is stored.
    fn conflict(&self, pair: &Pair) -> Option<Value> {
        let sent = pair.seq?;
        let (value, seq) = match self.pairs.get(&pair.key) {
            Some(version) => (version.value.as_str(), version.seq),
            None => ("", 0),
        };
        (sent != seq).then(|| result(23001, &pair.key, value, seq))
    }

    fn latest_seq(&self) -> u64 {
        let seqs = self.pairs.values().map(|version| version.seq);
        seqs.max().unwrap_or(0).max(self.clear_seq)
    }

    fn page(&self, start_seq: u64) -> Fields {
        let mut found: Vec<_> = self
            .pairs
            .iter()
            .filter(|(_, version)| version.seq >= start_seq)
            .collect();
        found.sort_by_key(|(_, version)| version.seq);
        let page: Value = found
            .iter()
            .take(PAGE_PAIRS)
            .map(|(key, version)| extension(key, &version.value, version.seq))
            .collect();
        Fields::from_iter([
            ("ExtensionList".to_owned(), page),
            (
                "CompleteFlag".to_owned(),
                u8::from(found.len() <= PAGE_PAIRS).into(),
            ),
            ("LatestSeq".to_owned(), self.latest_seq().into()),
            ("ClearSeq".to_owned(), self.clear_seq.into()),
        ])
    }
}

fn listed(pairs: &[Pair], each: impl FnMut(&Pair) -> Value) -> Fields {
    let results: Value = pairs.iter().map(each).collect();
    Fields::from_iter([("ExtensionList".to_owned(), results)])
}

fn result(code: i64, key: &str, value: &str, seq: u64) -> Value {
    json!({"ErrorCode": code, "Extension": extension(key, value, seq)})
}

fn extension(key: &str, value: &str, seq: u64) -> Value {
    json!({"Key": key, "Value": value, "Seq": seq})
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The message of the vendor's page.
    struct Page {
        store: Extensions,
        check_seq: bool,
    }

    impl Page {
        fn new() -> Self {
            Self {
                store: Extensions::default(),
                check_seq: false,
            }
        }

        fn call(&mut self, command: Command, mut body: Value) -> Result<Value, i64> {
            body["GroupId"] = "@TGS#1YMVAB3IZ".into();
            body["MsgSeq"] = 158.into();
            let body = Body::parse(body.to_string().as_bytes()).unwrap();
            Message::read(command, &body)
                .and_then(|message| ExtensionCall::read(command, message, &body))
                .and_then(|call| self.store.execute("1", &call, self.check_seq))
                .map(Value::Object)
                .map_err(|refusal| refusal.code)
        }

        fn set(&mut self, body: Value) -> Result<Value, i64> {
            self.call(Command::SetGroupExtensions, body)
        }

        fn get(&mut self, start_seq: u64) -> Value {
            self.call(Command::GetGroupExtensions, json!({"StartSeq": start_seq}))
                .unwrap()
        }
    }

    /// `count` pairs from `k<from>` on.
    fn many(from: usize, count: usize) -> Value {
        let list: Value = (from..from + count)
            .map(|n| json!({"Key": format!("k{n:03}"), "Value": "v"}))
            .collect();
        json!({"OperateType": 1, "ExtensionList": list})
    }

    #[test]
    fn setter_should_answer_each_pair_in_order_with_its_new_seq() {
        let mut page = Page::new();
        let answer = page.set(json!({"OperateType": 1, "ExtensionList": [
            {"Key": "key2", "Value": "value2", "Seq": 0},
            {"Key": "key1", "Value": "value1", "Seq": 0},
        ]}));
        let expected = json!({"ExtensionList": [
            {"ErrorCode": 0, "Extension": {"Key": "key2", "Value": "value2", "Seq": 1}},
            {"ErrorCode": 0, "Extension": {"Key": "key1", "Value": "value1", "Seq": 1}},
        ]});
        assert_eq!(answer, Ok(expected));
        let again = page
            .set(json!({"OperateType": 1, "ExtensionList": [{"Key": "key2", "Value": "x"}]}))
            .unwrap();
        assert_eq!(again["ExtensionList"][0]["Extension"]["Seq"], 2);
    }

    #[test]
    fn setter_should_not_look_at_seq_unless_told_to() {
        let write = json!({"OperateType": 1, "ExtensionList": [
            {"Key": "key1", "Value": "value1", "Seq": 0},
            {"Key": "key2", "Value": "mine", "Seq": 7},
        ]});
        let mut page = Page::new();
        let answer = page.set(write.clone()).unwrap();
        assert_eq!(answer["ExtensionList"][1]["ErrorCode"], 0);

        let mut page = Page::new();
        page.check_seq = true;
        let first =
            json!({"OperateType": 1, "ExtensionList": [{"Key": "key2", "Value": "theirs"}]});
        page.set(first).unwrap();
        let expected = json!({"ExtensionList": [
            {"ErrorCode": 0, "Extension": {"Key": "key1", "Value": "value1", "Seq": 1}},
            {"ErrorCode": 23001, "Extension": {"Key": "key2", "Value": "theirs", "Seq": 1}},
        ]});
        assert_eq!(page.set(write), Ok(expected));
    }

    #[test]
    fn delete_should_remove_what_is_listed_and_name_what_is_missing() {
        let mut page = Page::new();
        page.set(many(0, 2)).unwrap();
        let answer = page.set(json!({"OperateType": 2, "ExtensionList": [
            {"Key": "k001", "Value": "", "Seq": 1},
            {"Key": "other"},
        ]}));
        let expected = json!({"ExtensionList": [
            {"ErrorCode": 0, "Extension": {"Key": "k001", "Value": "", "Seq": 1}},
            {"ErrorCode": 23004, "Extension": {"Key": "other", "Value": "", "Seq": 0}},
        ]});
        assert_eq!(answer, Ok(expected));
        assert_eq!(page.get(0)["ExtensionList"].as_array().unwrap().len(), 1);
    }

    #[test]
    fn clear_should_remove_all_and_move_the_clear_seq() {
        let mut page = Page::new();
        page.set(many(0, 2)).unwrap();
        page.set(many(0, 1)).unwrap();
        assert_eq!(page.set(json!({"OperateType": 3})), Ok(json!({})));
        let expected =
            json!({"ExtensionList": [], "CompleteFlag": 1, "LatestSeq": 2, "ClearSeq": 2});
        assert_eq!(page.get(0), expected);
        let answer = page.set(many(0, 1)).unwrap();
        assert_eq!(answer["ExtensionList"][0]["Extension"]["Seq"], 3);
    }

    #[test]
    fn getter_should_order_by_seq_and_page() {
        let mut page = Page::new();
        for from in (0..201).step_by(20) {
            page.set(many(from, 20.min(201 - from))).unwrap();
        }
        page.set(many(0, 1)).unwrap();
        let all = page.get(0);
        assert_eq!(all["ExtensionList"].as_array().unwrap().len(), 200);
        assert_eq!(
            (&all["CompleteFlag"], &all["LatestSeq"]),
            (&json!(0), &json!(2))
        );
        let rest = page.get(2);
        assert_eq!(
            rest["ExtensionList"],
            json!([{"Key": "k000", "Value": "v", "Seq": 2}])
        );
        assert_eq!(rest["CompleteFlag"], 1);
    }

    #[test]
    fn limits_should_hold_on_both_sides() {
        let list = |key: &str, value: &str| json!({"OperateType": 1, "ExtensionList": [{"Key": key, "Value": value}]});
        for (body, code) in [
            (many(0, 20), 0),
            (many(0, 21), 10004),
            (list(&"k".repeat(100), &"v".repeat(1000)), 0),
            (list(&"k".repeat(101), ""), 10004),
            (list("k", &"v".repeat(1001)), 10004),
            (list("", ""), 10004),
            (json!({"OperateType": 1, "ExtensionList": []}), 10004),
            (
                json!({"OperateType": 1, "ExtensionList": [{"Key": "k"}]}),
                10004,
            ),
            (
                json!({"OperateType": 1, "ExtensionList": [{"Key": "k", "Value": "", "Seq": "0"}]}),
                10004,
            ),
            (json!({"OperateType": 2}), 10004),
            (json!({"OperateType": 4}), 10004),
            (json!({}), 10004),
        ] {
            assert_eq!(Page::new().set(body).err().unwrap_or(0), code);
        }
    }

    #[test]
    fn message_should_hold_300_pairs() {
        let mut page = Page::new();
        for from in (0..300).step_by(20) {
            page.set(many(from, 20)).unwrap();
        }
        assert!(page.set(many(299, 1)).is_ok());
        assert_eq!(page.set(many(299, 2)), Err(10004));
        let message = Message::InGroup {
            group: "@TGS#1YMVAB3IZ".into(),
            msg_seq: 158,
        };
        assert_eq!(page.store.snapshot("1", message).len(), 300);
    }

    #[test]
    fn one_to_one_message_should_be_named_by_its_pair_and_key() {
        let body = |text: &str| Body::parse(text.as_bytes()).unwrap();
        let read = |text: &str| Message::read(Command::SetExtensions, &body(text));
        let message = read(r#"{"To_Account":"b","MsgKey":"1_2_3"}"#).unwrap();
        let expected = Message::OneToOne {
            from: String::new(),
            to: "b".into(),
            msg_key: "1_2_3".into(),
        };
        assert_eq!(message, expected);
        for text in [
            r#"{"MsgKey":"1"}"#,
            r#"{"To_Account":"b"}"#,
            r#"{"To_Account":1,"MsgKey":"1"}"#,
        ] {
            assert_eq!(read(text).unwrap_err().code, 10004);
        }
    }
}
