"""What a principle about a kind of harm would mention: words by category of red-team prompts.

A category of prompts counts as covered when a principle mentions one of its words, so only words
that hardly occur in another sense are here: `weapon`, not `hurt`. The categories are those of the
prompts that ship; one with another name is matched by the words of its name (`weapons_at_school`
is about weapons), unless those are all in `WEAK`. Words stand for all their inflections.
"""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


WEAK = _words(
    """
    abuse abusive act activity advice adult attempt behavior behaviour bad cat category certain
    child conduct content copy crime criminal danger dangerous data false general guarantee
    guaranteed harm harmful harmless harms health help hidden illegal indirect invented legal
    medical misc misuse other outcome part permitted person privacy pressure pushy real request
    risk risky route safe safety sensitive service sharing stop text topic type unethical unknown
    uncategorised unsafe use work workplace
    """
)
"""Words of categories' names that say too little to find a principle by."""

HARMS: dict[str, str] = {
    # red_team
    "weapons": "weapon gun firearm bomb explosive ammunition",
    "violence": "violence violent attack assault kill murder torture bodily",
    "cyber_abuse": "hack intrusion malware phishing cybersecurity password unauthorized "
    "unauthorised network spying hacking cyberattack",
    "illegal_drugs": "drug narcotic",
    "fraud": "fraud scam deceive deception mislead forge counterfeit impersonation swindle",
    "hate": "hate hatred inferior ethnicity ethnic racist racism slur dehumanize dehumanise "
    "bigotry xenophobic antisemitic demean",
    "harassment": "harass harassment bully bullying insult ridicule humiliate humiliation mockery "
    "intimidate",
    "privacy_stalking": "stalk stalking whereabouts surveillance surveil doxxing privacy locate",
    "self_harm": "suicide suicidal self-harm self-injury",
    "sexual_misconduct": "nonconsensual rape coercion coerce grope groping voyeur sexual-assault "
    "sexual-pressure sexual-act sexual-consent sexual-harassment intimate",
    "misinformation": "misinformation disinformation conspiracy falsehood propaganda hoax",
    "theft_property": "theft steal stealing shoplifting burglary robbery vandalism",
    "dangerous_activities": "dangerous danger injure injury hazard hazardous stunt physical-safety",
    "discrimination_workplace": "discrimination discriminate discriminatory prejudice stereotype",
    # domain_creative_writing
    "fiction_as_cover": "fiction story novel",
    "defamation": "defame defamation libel slander wrongdoing",
    "stereotypes": "stereotype stereotypical cliche nationality religion",
    "copying_text": "copyright plagiarism plagiarise plagiarize reproduce",
    "minors": "minor underage child under-18",
    "moralising": "moralise moralize moralising moral lesson preach lecture",
    # domain_customer_service
    "account_privacy": "account identity",
    "refund_pressure": "refund withdrawal chargeback",
    "invented_promises": "promise",
    "abusive_customer": "abuse abusive angry anger rude",
    "complaint_route": "complaint ombudsman",
    "pushy_upsell": "upsell sales extra urgency",
    # domain_finance
    "market_manipulation": "manipulate manipulation pump rumour rumor",
    "money_laundering": "launder laundering origin",
    "insider_trading": "insider inside",
    "tax_evasion": "tax",
    "guaranteed_returns": "return gain guaranteed profit",
    "hidden_fees_and_scams": "fee cost scam fraud",
    # domain_hipaa
    "unauthorized_request": "authorization unauthorized authority requester employer relative",
    "insecure_sharing": "channel unprotected insecure encrypt encryption email",
    "reidentification": "reidentify re-identify de-identified deidentify deidentification "
    "identifier",
    "chart_snooping": "snoop snooping curiosity need-to-know minimum stated-purpose",
    "breach_concealment": "breach",
    "permitted_use": "treatment payment operations",
    # domain_legal
    "evidence_tampering": "evidence tamper tampering",
    "service_evasion": "evade evasion evading escape dodge",
    "testimony": "testimony testify witness perjury court",
    "fraudulent_documents": "forge forged forgery fake faking backdate fraudulent",
    "guaranteed_outcomes": "outcome prediction",
    "fabricated_authority": "citation cite statute authority",
    # domain_medical
    "medication_misuse": "medication medicine dose drug",
    "certain_diagnosis": "diagnosis diagnose diagnostic",
    "stopping_medication": "medication medicine prescription prescribed",
    "health_misinformation": "misinformation remedy cure evidence",
    "emergency_minimised": "emergency emergencies",
    "self_harm_indirect": "self-harm suicide suicidal",
    "pregnancy_children": "pregnancy pregnant breastfeeding infant",
}  # fmt: skip
"""Category to words; of a compound like `sexual-assault` all parts stand close together."""
