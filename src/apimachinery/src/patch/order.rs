//! The order of a merged list: the patch's items as the patch has them, the server's own items where
//! they were.

use serde_json::Value;

/// Whether two items are the same: by merge key, or by value when there is none.
pub(super) fn same(a: &Value, b: &Value, merge_key: Option<&str>) -> bool {
    match merge_key {
        Some(key) => match (a.get(key), b.get(key)) {
            (Some(a), Some(b)) => a == b,
            _ => false,
        },
        None => a == b,
    }
}

fn index(list: &[Value], item: &Value, merge_key: Option<&str>) -> Option<usize> {
    list.iter().position(|other| same(item, other, merge_key))
}

/// Sorts items by their place in `order`; those without one keep their place at the end.
fn sort_by(items: &mut [Value], order: &[Value], merge_key: Option<&str>) {
    items.sort_by_key(|item| index(order, item, merge_key).unwrap_or(usize::MAX));
}

/// Arranges `merged`: items that occur in `patch_order` follow that order, the others `server_order`,
/// and the two are interleaved as the server had them, as far as that is possible.
pub(super) fn arrange(
    merged: Vec<Value>,
    patch_order: &[Value],
    server_order: &[Value],
    merge_key: Option<&str>,
) -> Vec<Value> {
    let (mut patched, mut server): (Vec<Value>, Vec<Value>) =
        merged.into_iter().partition(|item| index(patch_order, item, merge_key).is_some());
    sort_by(&mut patched, patch_order, merge_key);
    sort_by(&mut server, server_order, merge_key);
    let mut all = Vec::with_capacity(patched.len() + server.len());
    let mut patched = patched.into_iter().peekable();
    let mut server = server.into_iter().peekable();
    loop {
        let server_first = match (server.peek(), patched.peek()) {
            (None, None) => return all,
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (Some(left), Some(right)) => {
                let left = index(server_order, left, merge_key);
                let right = index(server_order, right, merge_key);
                matches!((left, right), (Some(left), Some(right)) if left < right)
            }
        };
        all.extend(if server_first { server.next() } else { patched.next() });
    }
}

/// Whether `patch` lists its items in the order that `order` gives.
pub(super) fn agrees(patch: &[Value], order: &[Value], merge_key: Option<&str>) -> bool {
    let mut places = order.iter();
    patch
        .iter()
        .filter(|item| merge_key.is_none() || item.get("$patch").is_none_or(|d| d != "delete"))
        .all(|item| places.any(|place| same(item, place, merge_key)))
}
