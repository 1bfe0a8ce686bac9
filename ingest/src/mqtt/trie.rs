//! Topic filters as a tree of levels (MQTT 5, section 4.7), packed: nodes are numbers, and one hash table holds all edges.
//!
//! # Invariants
//! - A filter's path exists exactly as long as somebody subscribes to it or to one below it.
//! - Adding and removing a filter touch its own path only; looking a topic up allocates nothing.
//! - Wildcards in the first level do not match topics that begin with `$` ([MQTT-4.7.2-1]).

use std::hash::BuildHasher;

use foldhash::fast::RandomState;
use hashbrown::HashTable;
use slab::Slab;

use super::router::{Interest, SessionKey};
use super::shared::GroupKey;

/// A node's number. 100,000 sessions of 1,024 filters of 32 levels are fewer than 2^32.
type NodeKey = u32;

/// No node, or no list.
const NONE: u32 = u32::MAX;

#[derive(Debug)]
struct Node {
    level: Box<str>,
    parent: NodeKey,
    children: u32,
    /// The child of the level `+`, so that looking for it costs no hash.
    plus: NodeKey,
    /// The list of those whose filter ends here.
    here: u32,
    /// The list of those whose filter ends in `#` here.
    below: u32,
}

impl Node {
    fn new(level: &str, parent: NodeKey) -> Self {
        Self { level: level.into(), parent, children: 0, plus: NONE, here: NONE, below: NONE }
    }

    fn is_unused(&self) -> bool {
        self.children == 0 && self.here == NONE && self.below == NONE
    }
}

/// Who subscribed to one filter.
#[derive(Debug, Default)]
pub(super) struct Subscribers {
    /// In the order of their sessions, each once.
    pub(super) interests: Vec<Interest>,
    /// The groups that share the filter.
    pub(super) groups: Vec<GroupKey>,
}

impl Subscribers {
    /// Adds an interest, or replaces that of the same session. Returns whether it is new.
    pub(super) fn put(&mut self, interest: Interest) -> bool {
        put(&mut self.interests, interest)
    }

    /// Takes a session's interest out. Returns whether there was one.
    pub(super) fn remove(&mut self, session: SessionKey) -> bool {
        remove(&mut self.interests, session)
    }
}

/// Adds to a list in the order of sessions, or replaces. Returns whether it is new.
pub(super) fn put(list: &mut Vec<Interest>, interest: Interest) -> bool {
    match list.binary_search_by_key(&interest.session, |known| known.session) {
        Ok(at) => {
            if let Some(known) = list.get_mut(at) {
                *known = interest;
            }
            false
        }
        Err(at) => {
            if list.is_empty() {
                // Most filters have one subscriber: no room for more of them yet.
                list.reserve_exact(1);
            }
            list.insert(at, interest);
            true
        }
    }
}

/// Takes out of a list in the order of sessions. Returns whether it was there.
pub(super) fn remove(list: &mut Vec<Interest>, session: SessionKey) -> bool {
    let found = list.binary_search_by_key(&session, |known| known.session);
    found.is_ok_and(|at| {
        list.remove(at);
        true
    })
}

/// All filters.
#[derive(Debug)]
pub(super) struct Trie {
    nodes: Slab<Node>,
    /// Children other than `+`, by their parent and level.
    edges: HashTable<NodeKey>,
    hasher: RandomState,
    lists: Slab<Subscribers>,
    root: NodeKey,
}

impl Default for Trie {
    fn default() -> Self {
        let mut nodes = Slab::new();
        let root = nodes.insert(Node::new("", NONE)) as NodeKey;
        Self { nodes, edges: HashTable::new(), hasher: RandomState::default(), lists: Slab::new(), root }
    }
}

impl Trie {
    /// Changes who subscribed to a filter; its path is made before, and goes after if nobody is left.
    pub(super) fn change<T>(&mut self, filter: &str, change: impl FnOnce(&mut Subscribers) -> T) -> T {
        let (node, below) = self.make_path(filter);
        let list = self.list_of(node, below);
        let list = if list == NONE { self.add_list(node, below) } else { list };
        let Some(subscribers) = self.lists.get_mut(list as usize) else {
            unreachable!("BUG: list {list} of filter {filter} is not there")
        };
        let outcome = change(subscribers);
        if subscribers.interests.is_empty() && subscribers.groups.is_empty() {
            self.lists.remove(list as usize);
            self.set_list(node, below, NONE);
            self.prune(node);
        }
        outcome
    }

    /// Shows `visit` every list of subscribers whose filter matches the topic.
    pub(super) fn visit<'t>(&'t self, topic: &str, visit: &mut impl FnMut(&'t Subscribers)) {
        self.walk(self.root, Some(topic), topic.starts_with('$'), visit);
    }

    /// `rest`: the levels that are left, `None` behind the last; `reserved`: wildcards do not match the next level.
    fn walk<'t>(
        &'t self,
        node: NodeKey,
        rest: Option<&str>,
        reserved: bool,
        visit: &mut impl FnMut(&'t Subscribers),
    ) {
        let Some(found) = self.nodes.get(node as usize) else { return };
        if !reserved && let Some(list) = self.lists.get(found.below as usize) {
            visit(list);
        }
        let Some(rest) = rest else {
            self.lists.get(found.here as usize).into_iter().for_each(visit);
            return;
        };
        let (level, rest) = match memchr::memchr(b'/', rest.as_bytes()) {
            Some(at) => (rest.get(..at).unwrap_or_default(), rest.get(at + 1..)),
            None => (rest, None),
        };
        let others = found.children - u32::from(found.plus != NONE);
        if others > 0
            && let Some(child) = self.edge(node, level)
        {
            self.walk(child, rest, false, visit);
        }
        if !reserved && found.plus != NONE {
            self.walk(found.plus, rest, false, visit);
        }
    }

    fn edge(&self, parent: NodeKey, level: &str) -> Option<NodeKey> {
        let hash = self.hasher.hash_one((parent, level));
        self.edges.find(hash, |key| self.is_edge(*key, parent, level)).copied()
    }

    fn is_edge(&self, key: NodeKey, parent: NodeKey, level: &str) -> bool {
        let node = self.nodes.get(key as usize);
        node.is_some_and(|node| node.parent == parent && *node.level == *level)
    }

    /// The node that a filter ends at, and whether it ends there in `#`.
    fn make_path(&mut self, filter: &str) -> (NodeKey, bool) {
        let mut node = self.root;
        for level in filter.split('/') {
            if level == "#" {
                return (node, true);
            }
            node = self.make_child(node, level);
        }
        (node, false)
    }

    fn make_child(&mut self, parent: NodeKey, level: &str) -> NodeKey {
        let is_plus = level == "+";
        let plus = self.nodes.get(parent as usize).map_or(NONE, |node| node.plus);
        let known = if is_plus { Some(plus).filter(|key| *key != NONE) } else { self.edge(parent, level) };
        if let Some(known) = known {
            return known;
        }
        let key = self.nodes.insert(Node::new(level, parent)) as NodeKey;
        if let Some(node) = self.nodes.get_mut(parent as usize) {
            node.children += 1;
            if is_plus {
                node.plus = key;
            }
        }
        if !is_plus {
            let Self { nodes, edges, hasher, .. } = self;
            let hash_of = |key: &NodeKey| {
                let node = nodes.get(*key as usize);
                node.map_or(0, |node| hasher.hash_one((node.parent, &*node.level)))
            };
            edges.insert_unique(hash_of(&key), key, hash_of);
        }
        key
    }

    fn list_of(&self, node: NodeKey, below: bool) -> u32 {
        let node = self.nodes.get(node as usize);
        node.map_or(NONE, |node| if below { node.below } else { node.here })
    }

    fn set_list(&mut self, node: NodeKey, below: bool, list: u32) {
        if let Some(node) = self.nodes.get_mut(node as usize) {
            *(if below { &mut node.below } else { &mut node.here }) = list;
        }
    }

    fn add_list(&mut self, node: NodeKey, below: bool) -> u32 {
        let list = self.lists.insert(Subscribers::default()) as u32;
        self.set_list(node, below, list);
        list
    }

    /// Removes a node that nothing needs any more, and those above it that only led to it.
    fn prune(&mut self, mut node: NodeKey) {
        while node != self.root && self.nodes.get(node as usize).is_some_and(Node::is_unused) {
            let gone = self.nodes.remove(node as usize);
            if &*gone.level != "+" {
                let hash = self.hasher.hash_one((gone.parent, &*gone.level));
                if let Ok(edge) = self.edges.find_entry(hash, |key| *key == node) {
                    edge.remove();
                }
            }
            if let Some(parent) = self.nodes.get_mut(gone.parent as usize) {
                parent.children -= 1;
                if parent.plus == node {
                    parent.plus = NONE;
                }
            }
            node = gone.parent;
        }
    }

    /// Nodes, the root not counted; for tests.
    #[cfg(test)]
    pub(super) fn nodes(&self) -> usize {
        assert_eq!(
            self.edges.len() + self.nodes.iter().filter(|(_, n)| n.plus != NONE).count(),
            self.nodes.len() - 1
        );
        self.nodes.len() - 1
    }
}
