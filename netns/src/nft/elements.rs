//! Elements of sets and maps as the kernel lists them (`nf_tables.h`).

use crate::netlink::attributes;

pub(super) const DATA_VALUE: u16 = 1;
pub(super) const LIST_ELEMENTS: u16 = 3;
pub(super) const LIST_ELEMENT: u16 = 1;
pub(super) const ELEMENT_KEY: u16 = 1;
pub(super) const ELEMENT_DATA: u16 = 2;

/// The keys and values of a dumped list of elements.
pub(crate) fn read_elements(payload: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let value_of = |nest: &[u8]| {
        attributes(nest).find(|(kind, _)| *kind == DATA_VALUE).map(|(_, value)| value.to_vec())
    };
    let lists = attributes(payload.get(4..).unwrap_or_default());
    let elements = lists
        .filter(|(kind, _)| *kind == LIST_ELEMENTS)
        .flat_map(|(_, list)| attributes(list))
        .filter(|(kind, _)| *kind == LIST_ELEMENT);
    elements
        .filter_map(|(_, element)| {
            let part = |wanted| attributes(element).find(|(kind, _)| *kind == wanted);
            let key = value_of(part(ELEMENT_KEY)?.1)?;
            let data = part(ELEMENT_DATA).and_then(|(_, data)| value_of(data));
            Some((key, data.unwrap_or_default()))
        })
        .collect()
}
