"""How languages deny, doubt, introduce and lay out an answer: the tables that the readers of `matching`, `numerals` and
`rouge` look things up in.

Phrases are separated by `|` and compared by the tokens of `lm_eval_plnd.scoring.answers`, so that case, punctuation
(also the apostrophes of isn't and n'est) and Unicode form do not matter. A `*` behind a phrase stands for any ending
of its last word.
"""

from collections.abc import Mapping

Table = Mapping[str, str]

# Forms of XNLI's answer words, the keys, as `tasks/prompts.yaml` offers them (true, false, inconclusive): other
# genders, cases and copulas, the noun, and what says in other words that nothing can be concluded.
FORMS: Mapping[str, Table] = {
    "ar": {
        "صحيحة": "صحيح|صحيحا|صحيحًا|صحة",
        "خاطئة": "خاطئ|خاطئا|خاطئًا|خطأ|خاطىء",
        "غير محسومة": "غير محسوم|غير مؤكد|غير مؤكدة|غير واضح|غير واضحة|غير معروف|غير معروفة|لا يمكن تحديد*|"
        "لا يمكن الجزم|لا يمكن التأكد|لا يمكن الحكم",
    },
    "bg": {
        "вярно": "вярна|верен|верни|вярното|верно",
        "грешно": "грешна|грешен|грешни|погрешно|погрешна",
        "неопределено": "не може да се каже|не може да се определи дали|неопределена|неопределен|неясно|неясна|"
        "неизвестно|несигурно|не може да се определи|"
        "не може да бъде определен*|не е ясно|не е сигурно",
    },
    "de": {
        "wahr": "wahre|wahrer|wahres|wahren|wahrem",
        "falsch": "falsche|falscher|falsches|falschen|falschem",
        "unklar": "nicht sagen|unklare|unklarer|unklares|unklaren|unklarem|ungewiss|unbestimmt|unbestimmte|"
        "unbestimmter|unbestimmtes|unbestimmten|unbestimmtem|unbestimmbar|"
        "unentschieden|nicht bestimmbar|nicht eindeutig|nicht sicher|nicht klar|nicht bestimmen|nicht entscheiden|"
        "nicht feststellen|nicht beurteilen|nicht bestimmt werden|nicht entschieden werden",
    },
    "el": {
        "αληθής": "αληθές|αληθή|αληθείς|αληθούς|αλήθεια",
        "ψευδής": "ψευδές|ψευδή|ψευδείς|ψευδούς",
        "απροσδιόριστη": "απροσδιόριστο|απροσδιόριστος|απροσδιόριστα|ασαφές|ασαφής|αβέβαιο|αβέβαιη|άγνωστο|"
        "δεν μπορεί να προσδιοριστεί|δεν μπορεί να καθοριστεί|δεν μπορούμε να προσδιορίσουμε|δεν είναι σαφές|"
        "δεν είναι βέβαιο",
    },
    "en": {
        "true": "truth",
        "false": "falsehood",
        "inconclusive": "undetermined|indeterminate|undecided|unclear|unknown|uncertain|not clear|not certain|"
        "not conclusive|cannot be determined|can't be determined|could not be determined|can not be determined|"
        "cannot determine|can't determine|cannot say|can't say|cannot tell|can't tell|cannot conclude|"
        "impossible to say|impossible to tell|impossible to determine|not enough information",
    },
    "es": {
        "verdadera": "verdadero|verdaderas|verdaderos|verdad",
        "falsa": "falso|falsas|falsos",
        "indeterminada": "no se sabe|indeterminado|indeterminadas|indeterminados|incierta|incierto|no concluyente|"
        "inconcluso|"
        "inconclusa|desconocida|desconocido|no se puede determinar|no puede determinarse|no es posible determinar|"
        "no se puede saber|no está claro|no está clara",
    },
    "fr": {
        "vraie": "vrai|vraies|vrais",
        "fausse": "faux|fausses",
        "indéterminée": "pas dire si|pas savoir si|pas possible de savoir|pas possible de dire|indéterminé|"
        "indéterminées|indéterminés|incertain|incertaine|non concluante|non concluant|"
        "peu claire|pas claire|pas clair|impossible à déterminer|impossible de déterminer|pas être déterminé*|"
        "pas déterminer|pas conclure",
    },
    "hi": {
        "सही": "",
        "गलत": "ग़लत",
        "अनिर्णायक": "अनिश्चित|अस्पष्ट|अज्ञात|स्पष्ट नहीं|निश्चित नहीं|निर्धारित नहीं|तय नहीं|कहा नहीं जा सकता|"
        "नहीं कहा जा सकता|पता नहीं",
    },
    "ru": {
        "истинно": "истинное|истинна|истинный|истинная|истинен|истинны|истинным|истинной|истина|истиной",
        "ложно": "ложное|ложна|ложный|ложная|ложен|ложны|ложным|ложной|ложь|ложью",
        "неопределённо": "неопределенное|неопределенный|неопределенная|неопределенным|неопределенной|неопределена|"
        "неопределено|не определено|не определена|неясно|неизвестно|не ясно|не известно|невозможно определить|"
        "нельзя определить|нельзя сказать|невозможно сказать|не может быть определен*",
    },
    "sw": {
        "ya kweli": "kweli|ukweli|wa kweli",
        "ya uongo": "uongo|uwongo|wa uongo",
        "isiyo na uhakika": "haina uhakika|hakuna uhakika|bila uhakika|si hakika|sio hakika|haijulikani|haieleweki|"
        "haiwezi kuamuliwa|haiwezekani kujua|haiwezekani kuamua",
    },
    "th": {
        "จริง": "",
        "เท็จ": "",
        "สรุปไม่ได้": "ไม่สามารถสรุปได้|ไม่สามารถสรุป|ยังสรุปไม่ได้|ไม่แน่ชัด|ไม่แน่นอน|ไม่ชัดเจน|ไม่ทราบ|"
        "ระบุไม่ได้|ไม่สามารถระบุ|"
        "ไม่สามารถยืนยัน|ตัดสินไม่ได้|ไม่สามารถตัดสิน|บอกไม่ได้",
    },
    "tr": {
        "doğru": "doğrudur|doğruydu|doğruymuş|doğrudu|doğruyu",
        "yanlış": "yanlıştır|yanlıştı|yanlışmış|yanlışdır",
        "belirsiz": "belirsizdir|belirsizdi|belirsizlik|belirlenemez|belirlenemiyor|bilinmiyor|bilinemez|kesin değil*|"
        "net değil*|belli değil*|sonuca varılamaz|karar verilemez",
    },
    "ur": {
        "درست": "",
        "غلط": "",
        "غیر فیصلہ کن": "غیر یقینی|غیر واضح|نامعلوم|واضح نہیں|یقینی نہیں|طے نہیں|کہا نہیں جا سکتا|"
        "نہیں کہا جا سکتا|معلوم نہیں",
    },
    "vi": {
        "đúng": "",
        "sai": "",
        "không xác định": "không thể xác định|không xác định được|chưa xác định|chưa thể xác định|không rõ|chưa rõ|"
        "không chắc chắn|không thể kết luận|chưa thể kết luận|không thể biết",
    },
    "zh": {
        "正确": "正確",
        "错误": "錯誤",
        "无法确定": "無法確定|无法判断|無法判斷|不能确定|不确定|不確定|无法得知|"
        "无法得出结论|难以确定|不清楚|不明确|未知|无定论|尚无定论",
    },
}

# What turns an answer word into its opposite when it stands before it in the clause, or behind it.
NEGATORS_BEFORE: Table = {
    "ar": "أشك|نشك|أنفي|عكس|مستحيل|غير|ليس|ليست|لا|لم|لن|ليسا",
    "bg": "съмнява*|съмнително|обратното|невъзможно|не|няма|никога|нито",
    "de": "kann nicht|können nicht|nichts deutet|nichts spricht|nichts weist|nichts lässt|bezweif*|zweifle|zweifelt|"
    "zweifelhaft|gegenteil|unmöglich|nicht|kein*|nie|niemals|keineswegs|weder|noch",
    "el": "αμφιβάλλω|αντίθετο|αδύνατο|δεν|δε|μη|μην|όχι|ποτέ|ούτε",
    "en": "except|other than|rather than|instead of|doubt*|nothing suggests|nothing indicates|nothing says|"
    "nothing in|fails to|fail to|opposite|contrary|impossible|wrong to|incorrect to|not|no|nor|never|cannot|cant|"
    "isnt|arent|wasnt|werent|doesnt|dont|didnt|wont|wouldnt|couldnt|shouldnt|"
    "without|hardly|unlikely|far from|aint|neither",
    "es": "nada indica|nada sugiere|nada dice|dudo|dudamos|dudoso|contrario|imposible|no|nunca|tampoco|jamás|ni",
    "fr": "rien n'indique|rien ne|doute que|doute fort|doutons|douteux|contraire|impossible|pas|jamais|non|"
    "aucunement|nullement|ni",
    "hi": "नहीं लगता|नहीं लगती|नहीं मान*|शक है|संदेह है|असंभव|न|ना|नहीं कहा|नहीं है कि",
    "it": "non|mai|né",
    "nl": "niet|geen|nooit",
    "pl": "nie|nigdy|ani",
    "pt": "não|nunca|nem|jamais",
    "ru": "сомнева*|сомнительно|невозможно|неправда|обратное|не|нет|нельзя|никогда|неверно|ни",
    "sw": "nina shaka|ninashaka|tuna shaka|si|sio|siyo|hapana|kamwe|hai*|hau*|haku*|hawa*|siamini|sidhani",
    "th": "สงสัยว่า|ไม่|มิได้|มิใช่|หาใช่|ไร้",
    "tr": "imkansız|ne",
    "ur": "نہیں لگتا|نہیں لگتی|نہیں مان*|شک ہے|ناممکن|نہ|نا|غیر|نہیں کہا|نہیں ہے کہ",
    "vi": "nghi ngờ|không|chưa|chẳng|chả|đâu",
    "zh": "怀疑|懷疑|否定|相反|不|没|沒|未|非|无|無|否认",
}
NEGATORS_AFTER: Table = {
    "bn": "নয়",
    "de": "nicht|kein*|keineswegs",
    "hi": "नहीं|मत",
    "ja": "ではない|ではなく|ではありません|じゃない|じゃなく|でない|でなく",
    "nl": "niet",
    "te": "కాదు",
    "tr": "düşünmüyor*|sanmıyor*|inanmıyor*|sanmam|inanmam|şüpheli*|kuşkulu*|imkansız*|değil*|olma*|olama*|sayılmaz|"
    "denemez|denilemez|söylenemez",
    "ur": "نہیں",
    "th": "ไม่ได้",
}

# What says of a choice, behind it, that it is not the answer.
WRONG: Table = {
    "ar": "خطأ|خاطئ|خاطئة",
    "de": "falsch|inkorrekt|unzutreffend",
    "en": "wrong|incorrect|false",
    "es": "incorrecta|incorrecto|falsa|falso|equivocada|errónea",
    "fr": "fausse|faux|incorrecte|incorrect|erronée",
    "hi": "गलत|ग़लत",
    "it": "sbagliata|sbagliato|errata|falsa|scorretta",
    "ja": "間違い|誤り|不正解",
    "nl": "fout|onjuist|verkeerd",
    "pl": "błędna|błędne|błędny|nieprawidłowa|niepoprawna|zła",
    "pt": "errada|errado|incorreta|incorreto|falsa",
    "ru": "неверно|неверный|неверен|неправильно|неправильный|ложно|ошибочно",
    "sw": "makosa|uongo",
    "ur": "غلط",
    "vi": "sai",
    "zh": "错|錯|不对|不對",
}

# A word so hedged says that nothing is certain: XNLI's neutral label. A hedge that is itself negated (не может быть,
# 不可能) is none.
HEDGES: Table = {
    "ar": "جزئيا|جزئيًا|قد تكون|قد يكون|قد لا|ربما|من المحتمل|من الممكن|يمكن أن|محتمل*",
    "bg": "частично|отчасти|може би|може да|вероятно|възможно",
    "de": "möglich|teilweise|teils|zum teil|muss nicht|müssen nicht|vielleicht|möglicherweise|eventuell|könnte*|"
    "kann|wahrscheinlich|vermutlich",
    "el": "εν μέρει|μερικώς|πιθανά|είναι δυνατόν|ίσως|μπορεί|πιθανόν|πιθανώς|πιθανό|ενδέχεται",
    "en": "possible|partially|in part|may be|may not|might|could be|could not be|perhaps|maybe|possibly|probably|"
    "likely|may or may not|"
    "not sure|partly|partially",
    "es": "es posible|posible que|parcialmente|en parte|quizá|quizás|tal vez|posiblemente|probablemente|puede ser|"
    "puede que|podría ser|podría|a lo mejor",
    "fr": "possible|partiellement|en partie|peut-être que|peut-être|peut être|pourrait|probablement|possiblement|"
    "éventuellement|il se peut",
    "hi": "आंशिक रूप से|शायद|संभवतः|सम्भवतः|हो सकता|हो सकती|संभव है|जरूरी नहीं|ज़रूरी नहीं|आवश्यक नहीं|हमेशा सही नहीं",
    "ru": "частично|отчасти|может быть|может оказаться|возможно|вероятно|наверное|необязательно|скорее всего",
    "sw": "labda|huenda|pengine|inaweza kuwa|yaweza kuwa|si lazima|sio lazima|siyo lazima",
    "th": "บางส่วน|เป็นไปได้|อาจ|บางที|คงจะ|น่าจะ|ไม่จำเป็น|ไม่แน่ว่า|ไม่เสมอไป",
    "tr": "kısmen|mümkün*|belki|muhtemelen|olasılıkla|olabilir*|olmayabilir*|sanırım",
    "ur": "جزوی طور پر|شاید|غالبا|ممکن ہے|ہو سکتا|ہو سکتی|ضروری نہیں|لازمی نہیں",
    "vi": "một phần|có thể|có lẽ|chắc là|chưa chắc|không hẳn|chưa hẳn|không nhất thiết|không phải lúc nào",
    "zh": "部分|可能|也许|也許|或许|或許|大概|未必|不见得|不見得",
}

# Adverbs whose negation hedges: not necessarily true, pas forcément, 不一定.
CERTAINTY: Table = {
    "ar": "بالضرورة|حتما|دائما|دائمًا",
    "bg": "непременно|задължително|винаги",
    "de": "unbedingt|zwingend|notwendigerweise|zwangsläufig|notwendig|immer|sicher",
    "el": "απαραίτητα|αναγκαστικά|οπωσδήποτε|πάντα|κατ' ανάγκη",
    "en": "necessarily|always|definitely|certainly|conclusively",
    "es": "necesariamente|siempre|forzosamente",
    "fr": "nécessairement|forcément|toujours|obligatoirement",
    "hi": "हमेशा|अनिवार्य रूप से|जरूरी रूप से",
    "ru": "обязательно|всегда",
    "sw": "lazima|daima|kila wakati",
    "th": "เสมอ|จำเป็น",
    "tr": "mutlaka|illa|zorunlu olarak|her zaman|ille",
    "ur": "ہمیشہ|لازمی طور پر|ضروری طور پر",
    "vi": "nhất thiết|luôn luôn|luôn",
    "zh": "一定|必然|必定|总是|總是",
}

# With what a clause begins that says what the one before its comma denies or doubts: ich glaube nicht, dass …
COMPLEMENTIZERS: Table = {
    "bg": "че",
    "de": "dass|daß",
    "el": "ότι|πως",
    "hi": "कि",
    "ru": "что|чтобы|будто",
    "ur": "کہ",
    "vi": "rằng",
}

# A word in their clause is in question: it is not claimed.
WHETHER: Table = {
    "ar": "ما إذا|إذا|هل|إن كان*",
    "bg": "дали|ли|ако",
    "de": "ob|falls|wenn",
    "el": "αν|εάν",
    "en": "whether|if",
    "es": "si",
    "fr": "si",
    "hi": "क्या|या नहीं|यदि|अगर",
    "ru": "ли|если",
    "sw": "kama|ikiwa|iwapo",
    "th": "หรือไม่|ถ้า|หาก|ว่าจริงหรือ",
    "tr": "olup olmad*|eğer|mi|mı|mu|mü",
    "ur": "کیا|آیا|یا نہیں|اگر",
    "vi": "liệu|nếu|hay không|hay chưa",
    "zh": "是否|如果|是不是|与否|與否",
}

# Where another clause begins without punctuation.
BREAKS: Table = {
    "ar": "بل|لكن|ولكن|لأن|لذلك|إذن",
    "bg": "но|а|и|защото|затова|ами",
    "de": "sondern|aber|und|weil|denn|also|daher|deshalb",
    "el": "αλλά|και|γιατί|επειδή|οπότε|άρα",
    "en": "but|and|so|because|therefore|thus|hence|since|rather",
    "es": "sino|pero|y|porque|pues|luego",
    "fr": "mais|et|car|donc|parce",
    "hi": "बल्कि|लेकिन|और|क्योंकि|इसलिए",
    "it": "ma|bensì|e|perché|quindi",
    "ja": "が|ので|から",
    "nl": "maar|en|want|omdat|dus",
    "pl": "ale|lecz|tylko|i|bo|ponieważ|więc",
    "pt": "mas|e|sim|porque|pois|portanto",
    "ru": "но|а|и|потому|поэтому|так как|следовательно|значит",
    "sw": "bali|lakini|na|kwa sababu|hivyo|kwa hiyo",
    "th": "แต่|จึง|ดังนั้น|เพราะ|และ",
    "tr": "ama|fakat|aksine|ve|çünkü|bu yüzden|dolayısıyla",
    "ur": "بلکہ|لیکن|اور|کیونکہ|اس لیے",
    "vi": "mà|nhưng|và|vì|nên|do đó",
    "zh": "但|而|所以|因此|因为|因為|故",
}

# Phrases with an answer word or a negator in them that neither name nor deny: no doubt, à vrai dire, ข้อเท็จจริง (fact);
# and how prompts begin.
IDIOMS: Table = {
    "ar": "صحيحة أم خاطئة|صحيحة أو خاطئة|على العكس|بالعكس|لا شك|بلا شك|دون شك|لا ريب",
    "bg": "вярно или грешно|без съмнение|няма съмнение",
    "de": "wahr oder falsch|im gegenteil|als wahr an|kein zweifel|nicht nur|ohne zweifel|in wahrheit",
    "el": "αληθής ή ψευδής|θεωρήστε αληθές|στην αλήθεια|χωρίς αμφιβολία|δεν υπάρχει αμφιβολία",
    "en": "doubtless|on the contrary|true/false|as truth|no doubt|without doubt|without a doubt|not only|in truth|"
    "true or false|come true|no question",
    "es": "al contrario|por el contrario|no cabe duda|verdadera o falsa|verdadero o falso|sin duda|no hay duda|"
    "no solo|no sólo|en verdad|la verdad es que",
    "fr": "il ne fait aucun doute que|il ne fait pas de doute que|aucun doute que|pas de doute que|nul doute que|"
    "aucun doute|vraie ou fausse|vrai ou faux|au contraire|rien de tel|tenez pour vrai|à vrai dire|pas de doute|"
    "pas seulement|nul doute|il n'y a aucun doute",
    "hi": "सही या गलत|कोई शक नहीं|इसमें कोई संदेह नहीं|निस्संदेह",
    "ru": "истинно или ложно|не сомневаюсь|наоборот|нет сомнений|не только|без сомнения|по истине",
    "sw": "yafuatayo kuwa kweli|kwa kweli|hakuna shaka|bila shaka",
    "th": "ถือว่าข้อความต่อไปนี้เป็นความจริง|ข้อเท็จจริง|จริงๆ|จริง ๆ|จริงใจ|จริงจัง|อันที่จริง|"
    "ที่จริงแล้ว|ในความเป็นจริง|ไม่ต้องสงสัย|แท้ที่จริง|จริงหรือเท็จ",
    "tr": "doğru mu yanlış mı|doğru ya da yanlış|doğru veya yanlış|hiç şüphe yok|doğru orantılı",
    "ur": "درست یا غلط|کو سچ مانیے|کوئی شک نہیں|بلا شبہ",
    "vi": "không nghi ngờ|đúng hay sai|không nghi ngờ gì|chắc chắn không nghi ngờ|không còn nghi ngờ|đúng ra",
    "zh": "毫不怀疑|毫不懷疑|不容怀疑|相反地|正确还是错误|正确或错误|毫无疑问|毫無疑問|无疑|不仅|不僅|不过|正确性|"
    "错误率|准确无误",
}

# The words that introduce an answer, and what stands between them and it. `:` and `=` do in every language.
ANSWER_WORDS: Table = {
    "ar": "الإجابة|الجواب|الاجابة|الخيار|الحرف",
    "bn": "উত্তর|উত্তরটি|চূড়ান্ত উত্তর",
    "de": "Antwort|Ergebnis|Lösung|Option|Buchstabe",
    "en": "answer|final answer|result|solution|option|choice|letter|choose|pick|select",
    "es": "respuesta|resultado|solución|opción|letra",
    "fr": "réponse|résultat|solution|option|choix|lettre",
    "hi": "उत्तर|जवाब|विकल्प",
    "it": "risposta|soluzione|opzione|lettera|risultato",
    "ja": "答え|解答|正解|回答|結果|選択肢",
    "nl": "antwoord|oplossing|optie|letter|keuze",
    "pl": "odpowiedź|odpowiedzią|wynik|opcja|litera",
    "pt": "resposta|resultado|solução|opção|letra|alternativa",
    "ru": "ответ|ответом|результат|вариант|буква|решение",
    "sw": "jibu|majibu|jawabu|herufi|chaguo",
    "te": "సమాధానం|జవాబు|తుది సమాధానం",
    "th": "คำตอบ|ตอบ|คำตอบสุดท้าย",
    "ur": "جواب|صحیح جواب|آپشن",
    "vi": "câu trả lời|đáp án|trả lời|phương án|lựa chọn",
    "zh": "答案|答|结果|結果|最终答案|选项|選項|选择|選擇|选|選",
}
LINKS: Table = {
    "ar": "هو|هي|هما",
    "bn": "হল|হলো|হচ্ছে|হবে|হয়",
    "de": "ist|lautet|beträgt|war|wäre",
    "en": "is|was|equals|would be|will be|should be|must be",
    "es": "es|será|sería|son|correcta es",
    "fr": "est|sera|serait|sont",
    "hi": "है",
    "it": "è|sarà|corretta è",
    "ja": "は|が",
    "nl": "is|luidt",
    "pl": "to|jest|brzmi",
    "pt": "é|será|seria",
    "ru": "—|–|-|равен|равно|равна|это|будет|составляет|является",
    "sw": "ni|litakuwa|ya",
    "te": "ఏమిటంటే|",
    "th": "คือ|เป็น|ว่า",
    "ur": "ہے|یہ ہے",
    "vi": "là|bằng",
    "zh": "是|为|為|等于|等於|应该是|應該是",
}

# What may stand between them where there are no spaces between words, as the inside of a regular expression's set: the
# answer (should, in the end, in total, not) is. Anything else begins another clause: 结果她为, "so she, for".
BETWEEN: Table = {
    "ja": "の数字合計最終的な正",
    "th": r"\p{Thai}",
    "zh": "应該该就也便即最终終后後因此所以总總共一的确確定约約大概正不并這这道题題",
}

# Capital letters that are also words of a language: "A hospital" begins with an article, "E a escola" with "and".
LETTER_WORDS: Table = {
    "en": "A",
    "es": "A|E",
    "fr": "A",
    "it": "A|E",
    "pl": "A",
    "pt": "A|E",
    "vi": "A",
}

# The word for a summary, which a line may say and nothing else, and how lines begin that only present one.
SUMMARY_WORDS: Table = {
    "ar": "ملخص|الملخص|خلاصة|الخلاصة|تلخيص",
    "az": "xülasə",
    "bn": "সারসংক্ষেপ|সারাংশ|সংক্ষেপ",
    "cy": "crynodeb",
    "en": "TL;DR|the summary is|summary of the text|summary of the article|in summary|summary|one-sentence summary|"
    "summary of the context",
    "es": "en resumen|resumen|el resumen|resumen en una oración",
    "fa": "خلاصه|چکیده",
    "fr": "en résumé|résumé|le résumé|résumé en une phrase",
    "gu": "સારાંશ",
    "hi": "सारांश|संक्षेप",
    "id": "ringkasan",
    "ja": "要約|要約文|まとめ",
    "ko": "요약|요약문",
    "mr": "सारांश",
    "ne": "सारांश|सार",
    "pa": "ਸਾਰ|ਸਾਰਾਂਸ਼|ਸੰਖੇਪ",
    "pt": "em resumo|resumo|o resumo|síntese",
    "ru": "резюме|краткое содержание|краткое изложение|итог",
    "sw": "muhtasari",
    "ta": "சுருக்கம்|தொகுப்பு",
    "te": "సారాంశం|సంగ్రహం",
    "th": "สรุป|บทสรุป|ใจความสำคัญ|สรุปความ",
    "tr": "özet|özeti",
    "uk": "резюме|стислий зміст|короткий зміст|підсумок",
    "ur": "خلاصہ",
    "vi": "tóm tắt|bản tóm tắt|tóm lược",
    "zh": "总结一下|摘要如下|总结如下|简而言之|摘要|总结|總結|概括|概要|一句话总结|一句话概括",
}
PRESENTING: Table = {
    "ar": "إليك|فيما يلي|هذا",
    "az": "budur|aşağıda",
    "bn": "এখানে|নিচে|এই হল",
    "cy": "dyma",
    "en": "here|sure|certainly|of course|below|this is|the following",
    "es": "aquí|claro|a continuación|este es|por supuesto",
    "fa": "در اینجا|این|در ادامه",
    "fr": "voici|bien sûr|ci-dessous",
    "gu": "અહીં|નીચે",
    "hi": "यहाँ|यहां|नीचे|यह रहा",
    "id": "berikut|ini",
    "ja": "以下|こちら",
    "ko": "다음은|아래는|여기",
    "mr": "येथे|खाली|हा",
    "ne": "यहाँ|तल",
    "pa": "ਇੱਥੇ|ਹੇਠਾਂ|ਇਹ",
    "pt": "aqui|claro|segue|abaixo|este é",
    "ru": "вот|конечно|ниже",
    "sw": "huu|hapa|hii",
    "ta": "இதோ|இங்கே|கீழே",
    "te": "ఇదిగో|ఇక్కడ|క్రింద",
    "th": "นี่คือ|ต่อไปนี้|ด้านล่าง",
    "tr": "işte|aşağıda|tabii",
    "uk": "ось|звичайно|нижче",
    "ur": "یہاں|یہ|ذیل",
    "vi": "dưới đây|đây là|sau đây",
    "zh": "这篇|以下|好的|当然|下面|这是",
}


def phrases(table: Table, language: str) -> list[str]:
    """A language's phrases in a table, none where it has no row."""
    return [phrase for phrase in table.get(language, "").split("|") if phrase]
